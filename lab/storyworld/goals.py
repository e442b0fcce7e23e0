"""What a story can be about: each goal sets a problem up, lets the characters solve it, and leaves a lesson."""

from . import words
from .grammar import article
from .plots import Story
from .world import REMEDIES, Character, Dice


def lost(s: Story) -> None:
    """Something the hero loves is gone: left behind, or carried off by somebody who liked it too."""
    left = s.dice.chance(0.5)
    if left:
        s.hero.trait = s.dice.pick(("careless", "forgetful", "impatient", "cheerful", "curious"))
    toy = s.treasure()
    s.open(0.25)
    s.do("treasure", thing=toy)
    s.scene()
    where = s.place()
    s.go(where)
    if left:
        s.do("leave", thing=toy, place=where)
        s.knows(s.hero, toy, where)
        s.go(s.place())
        s.lesson = s.dice.pick(("care", "care", ""))
    else:
        thief = s.stranger(where)
        where, trouble = s.trap(toy)
        s.do("steal", thing=toy, other=thief, place=where, note=trouble)
    s.do("miss", thing=toy)
    s.maybe(0.3, "feel", note="sad", because=s.world.events[-1], thing=toy)
    s.scene()
    s.look_for(toy, where)
    s.scene()
    s.recover(toy, where)
    if not left and s.dice.chance(0.3):
        thief = next(e.other for e in s.world.events if e.kind == "steal")
        s.do("return_thing", thief, other=s.hero, thing=toy)
        s.do("forgive", other=thief)
        s.lesson = "forgive"
    s.close(toy)


def stuck(s: Story) -> None:
    """The hero's toy lands where it cannot be reached."""
    toy = s.treasure()
    s.open(0.5)
    s.do("treasure", thing=toy)
    s.scene()
    place, trouble = s.trap(toy, ("high", "water", "crack"))
    s.go(place)
    s.maybe(0.3, "play", thing=toy)
    s.mishap(toy, place, trouble)
    s.maybe(0.4, "feel", note="sad", because=s.world.events[-1], thing=toy)
    s.overcome(toy)
    s.do("recover", thing=toy)
    s.close(toy)


def kindness(s: Story) -> None:
    """The hero shares food with a hungry animal, and later the animal helps."""
    s.hero.trait = s.dice.pick(("kind", "greedy", "shy", "gentle", "cheerful", "impatient"))
    toy, food = s.treasure(), s.own(s.hero, s.thing("food"))
    s.open(0.0)
    s.do("treasure", thing=toy)
    s.scene()
    s.do("lunch", thing=food)
    place = s.place()
    s.go(place)
    target, trouble = s.trap(toy)
    other = s.stranger(place, REMEDIES[trouble][1])
    s.do("need", other, note="hungry", place=place)
    s.do("beg", other, other=s.hero, thing=food)
    if s.hero.trait in ("greedy", "impatient"):
        s.do("refuse", other=other, thing=food)
        s.do("guilt", other=other, note="refuse")
    s.do("share_food", thing=food, other=other)
    s.do("thanks_food", other, other=s.hero, thing=food)
    s.scene()
    s.maybe(0.5, "later")
    s.go(target)
    s.mishap(toy, target, trouble)
    s.maybe(0.5, "fail", thing=toy, note=trouble, place=target)
    s.do("appear", other, place=target)
    s.do("offer", other, other=s.hero, thing=food)
    s.do("free", other, thing=toy, note=other.skill, other=s.hero)
    s.do("thank", other=other, thing=toy)
    s.lesson = "kindness"
    s.close(toy)


def truth(s: Story) -> None:
    """The hero breaks something, and has to choose between a lie and the truth."""
    owner = s.relative()
    vase, toy = (
        s.own(owner, s.thing("breakable"), at=s.home),
        s.own(s.hero, s.thing("toy", nouns=words.INDOOR_BREAKERS)),
    )
    s.effort = 0
    s.open(0.2)
    s.do("admire", owner, thing=vase)
    s.scene()
    s.do("break", thing=vase, tool=toy)
    if s.dice.chance(0.4):
        s.do("hide", thing=vase)
        s.do("who", owner, other=s.hero, thing=vase)
        culprit = s.dice.pick(("the cat", "the wind", "the dog", "a bird"))
        s.do("lie", other=owner, thing=vase, note=culprit)
        s.do("guilt", note="lie", thing=vase, other=owner)
    else:
        s.do("guilt", note="break", thing=vase, other=owner)
    s.do("confess", other=owner, thing=vase)
    s.do("forgive", owner, other=s.hero, note="truth", thing=vase)
    s.scene()
    s.maybe(0.5, "plan_mend", owner, other=s.hero, thing=vase)
    glue = s.fetch_tool("mend", s.home, words.MENDERS[vase.stuff])
    s.do("mend", thing=vase, tool=glue, other=owner)
    s.lesson = "truth"
    s.close(vase, keep=False)


def gift(s: Story) -> None:
    """Somebody should get a present, which takes a trade."""
    s.effort = 0
    s.open(0.0)
    friend = s.befriend()
    why = s.dice.pick(list(words.PRESENT_REASONS))
    s.scene()
    s.do("reason", other=friend, note=why)
    s.friend = None
    shop = s.place()
    seller = s.elder(shop)
    present = s.own(seller, s.thing(s.dice.pick(("treasure", "clothes", "toy"))))
    hard = s.dice.chance(0.3)  # whether the price is hard to get
    price = s.thing(s.dice.pick(("treasure", "clothes") if hard else ("treasure", "food", "clothes")))
    s.go(shop)
    s.maybe(0.5, "meet", other=seller, place=shop, note="elder")
    s.do("want_gift", other=seller, thing=present)
    s.do("price", seller, other=s.hero, thing=present, tool=price)
    s.scene()
    where = s.place()
    if hard:
        where, trouble = s.trap(price)
        s.trouble(price, trouble)
    s.put(price, where)
    s.do("know_where", thing=price, place=where)
    s.go(where)
    if price in s.world.trouble:
        s.do("spot", thing=price, place=where)
        s.overcome(price)
    else:
        s.do("take", thing=price)
    s.go(shop, "return")
    s.do("trade", other=seller, thing=present, tool=price)
    s.scene()
    s.go(s.home, "return")
    s.do("present", other=friend, thing=present)
    s.friend = friend
    s.do("thanks_present", friend, other=s.hero, thing=present)
    s.lesson = "gift"
    s.close(present, keep=False)


def errand(s: Story) -> None:
    """Something must be brought to somebody through the dark, though the hero is afraid."""
    s.hero.trait = s.dice.pick(("timid", "shy", "kind", "cheerful", "curious", "gentle"))
    sender, target = s.relative(), s.place()
    receiver, parcel = s.elder(target), s.thing(s.dice.pick(("food", "clothes", "treasure")))
    s.own(sender, parcel)
    s.open(0.3)
    s.scene()
    s.do("send", sender, other=s.hero, thing=parcel, place=target, note=receiver.name)
    s.do("give", sender, thing=parcel, other=s.hero, note="parcel")
    dark = s.place("dark")
    s.go(dark)
    s.do("noise", place=dark)
    s.do("fear", place=dark)
    s.do("courage", note=s.dice.pick(("song", "breath")), place=dark)
    small = s.stranger(dark, ("squeeze", "fly", "climb"))
    s.do("only", small, other=s.hero, place=dark)
    s.do("brave", place=dark)
    s.scene()
    s.go(target)
    s.do("deliver", other=receiver, thing=parcel)
    s.maybe(0.6, "tell_adventure", other=receiver, place=dark)
    s.maybe(0.8, "praise", receiver, other=s.hero)
    s.lesson = "courage"
    s.close(parcel, keep=False)


def make(s: Story) -> None:
    """Friends make something; one does not want to help, and comes round in the end."""
    s.open(0.0)
    s.befriend()
    third = s.put(s.character("stranger", traits=("lazy", "boastful", "stubborn", "proud")), s.home)
    noun = s.dice.pick([n for n in words.MAKEABLES if n not in s.taken])
    parts, verb = words.MAKEABLES[noun]
    parts = s.dice.sample(parts, 2)
    s.scene()
    s.do("occasion", note=s.dice.pick(words.OCCASIONS))
    s.do("plan", other=s.friend, note=f"{verb} {article(noun)}")
    s.do("invite", other=third, note=noun)
    s.do("decline", third, other=s.hero, note=third.trait)
    s.scene()
    for part, who in zip(parts, (s.hero, s.friend), strict=True):
        s.do("gather", who, place=s.place(), note=part)
    s.maybe(0.6, "work", other=s.friend, note=noun)
    setback = s.dice.pick(("rain", "taste", "lean", ""))
    if setback:
        s.do("setback", other=s.friend, note=noun)
        s.do("again", other=s.friend, note=noun)
    s.scene()
    s.do("done", other=s.friend, note=noun)
    s.do("regret", third, other=s.hero, note=noun)
    s.do("welcome", other=third, note=noun)
    s.lesson = "together"
    s.close()


def quarrel(s: Story) -> None:
    """Two friends want the same thing, and nobody has it in the end, until they make up."""
    toy = s.treasure(("toy",))
    s.open(0.0)
    friend = s.befriend()
    s.do("treasure", thing=toy)
    s.scene()
    place, trouble = s.trap(toy, ("high", "water", "crack"))
    s.go(place)
    s.do("want_turn", friend, other=s.hero, thing=toy)
    s.maybe(0.7, "refuse_turn", other=friend, thing=toy)
    s.do("quarrel", other=friend, thing=toy)
    if s.dice.chance(0.5):
        s.do("break", thing=toy, other=friend, note="quarrel")
        s.maybe(0.6, "blame", other=friend)
        s.do("make_up", friend, other=s.hero, thing=toy, note="broken")
        s.scene()
        s.do(
            "mend", thing=toy, tool=s.fetch_tool("mend", place, words.MENDERS[toy.stuff]), other=friend, note="together"
        )
    else:
        s.mishap(toy, place, trouble)
        s.maybe(0.6, "blame", other=friend)
        s.do("make_up", friend, other=s.hero, thing=toy, note="stuck")
        s.overcome(toy)
    s.do("turns", other=friend, thing=toy)
    s.lesson = "share"
    s.close(toy, keep=False)


def learn(s: Story) -> None:
    """A skill takes practice."""
    skill = s.dice.pick(list(words.SKILLS))
    s.hero.trait = s.dice.pick(("impatient", "shy", "stubborn", "curious", "cheerful", "proud"))
    s.open(0.0)
    s.scene()
    s.do("wish", note=skill)
    place = s.place()
    s.reach(place)
    s.do("try", note=words.SKILLS[skill][1])
    mocker = s.put(s.character("stranger", traits=("boastful",)), place)
    if s.dice.chance(0.6):
        s.do("mock", mocker, other=s.hero, note=skill)
    s.maybe(0.6, "give_up", note=skill)
    s.scene()
    where = s.place()
    teacher = s.elder(where)
    s.go(where)
    s.maybe(0.5, "meet", other=teacher, place=where, note="elder")
    s.do("complain", other=teacher, note=skill)
    s.do("advice", teacher, other=s.hero, note=skill)
    s.scene()
    s.do("practice", note=words.SKILLS[skill][0])
    s.maybe(0.6, "setback_skill", note=words.SKILLS[skill][1])
    s.do("succeed", note=words.SKILLS[skill][2])
    if any(e.kind == "mock" for e in s.world.events):
        s.do("impress", mocker, other=s.hero, note=skill)
        s.do("teach", other=mocker, note=skill)
    s.lesson = "practice"
    s.close()


def lost_baby(s: Story) -> None:
    """A baby animal has lost its mother."""
    s.open(0.0)
    kind = s.dice.pick([k for k in words.YOUNG if k not in s.taken and words.YOUNG[k] not in s.taken])
    s.taken[kind] = s.taken[words.YOUNG[kind]] = True
    young = words.YOUNG[kind]
    place = s.place()
    baby = s.put(Character(f"the {young}", young, "it", "", "", "baby"), place)
    home = s.place(avoid="indoors")
    mother = s.put(Character(f"the mother {kind}", kind, "she", "", "", "mother"), home)
    s.scene()
    s.go(place)
    s.do("hear_cry", place=place, note=words.CRIES[kind])
    s.do("lost_baby", baby, other=s.hero, place=place)
    s.do("ask_home", other=baby)
    s.do("clue", baby, other=s.hero, place=home, note=s.dice.pick(home.details))
    s.do("promise_help", other=baby)
    s.scene()
    wrong = s.place(avoid="indoors")
    if s.dice.chance(0.7):
        s.do("go", other=baby, note="lead", place=wrong)
        s.do("wrong_home", baby, place=wrong)
    s.do("know_home", place=home)
    if s.dice.chance(0.4):
        s.do("carry", other=baby)
    s.do("go", other=baby, note="lead", place=home)
    s.do("reunite", baby, other=mother, place=home)
    s.do("mother_thanks", mother, other=s.hero)
    s.lesson = "small"
    s.close()


def grow(s: Story) -> None:
    """A seed needs water and patience."""
    s.hero.trait = s.dice.pick(("impatient", "curious", "patient", "lazy", "cheerful"))
    plant = s.dice.pick(list(words.SEEDS))
    sprout, fruit = words.SEEDS[plant]
    s.open(0.3)
    where = s.place()
    giver = s.elder(where)
    s.scene()
    s.go(where)
    s.maybe(0.4, "meet", other=giver, place=where, note="elder")
    s.do("seed", giver, other=s.hero, note=plant)
    bed = s.place("soft", avoid="indoors")
    s.go(bed)
    s.do("plant", place=bed, note=plant)
    s.scene()
    s.do("nothing_grows", note=plant)
    if s.hero.trait in ("impatient", "curious", "lazy"):
        s.do("temptation", note=plant)
    s.do("patience", giver, other=s.hero, note=plant)
    s.do("watering", place=bed)
    s.do("sprout", note=sprout)
    s.scene()
    s.do("harvest", place=bed, note=fruit)
    s.do("share_harvest", other=s.friend or giver, note="friend" if s.friend else "giver")
    s.lesson = "patience"
    s.close()


def promise(s: Story) -> None:
    """A promise is forgotten over play, and must be made good."""
    s.hero.trait = s.dice.pick(("forgetful", "careless", "lazy", "cheerful", "curious"))
    asker = s.relative()
    toy = s.treasure(("toy",))
    duty = s.dice.pick(list(words.PROMISES))
    _, harm, repair = words.PROMISES[duty]
    s.open(0.4)
    s.scene()
    s.do("duty", asker, other=s.hero, note=duty)
    s.do("promise", other=asker, note=duty)
    s.scene()
    s.reach(s.place())
    s.do("play", thing=toy)
    s.do("forget", note=duty)
    s.go(s.home, "return")
    s.do("harm", note=harm)
    s.do("guilt", note="promise", other=asker)
    s.do("confess", other=asker, note="promise")
    s.do("repair", note=repair)
    s.do("forgive", asker, other=s.hero, note="promise")
    s.lesson = "promise"
    s.close()


def race(s: Story) -> None:
    """The boaster is sure to win, and stops on the way."""
    s.hero.trait = s.dice.pick(("patient", "shy", "gentle", "stubborn", "cheerful", "timid"))
    s.open(0.0)
    rival = s.put(s.character("stranger", traits=("boastful", "lazy", "greedy")), s.home)
    goal, half = s.place(), s.place()
    s.scene()
    s.do("brag", rival, other=s.hero)
    s.do("challenge", other=rival, place=goal)
    s.scene()
    s.do("start", other=rival)
    s.do("ahead", rival, other=s.hero, place=half)
    s.do("pause", rival, place=half, note=s.dice.pick(words.PAUSES))
    s.do("plod", place=half)
    if s.dice.chance(0.4):
        s.do("hurt", rival, other=s.hero, place=half)
        s.do("stop_help", other=rival)
        s.do("go", place=goal, other=rival, note="together")
        s.do("make_up", rival, other=s.hero, note="race")
        s.lesson = "win_help"
    else:
        s.do("go", place=goal)
        s.do("win", other=rival, place=goal)
        s.do("shame", rival, other=s.hero)
        s.do("kind_win", other=rival)
        s.lesson = "boast"
    s.close()


def shelter(s: Story) -> None:
    """A storm, one dry place, and more and more who want to come in."""
    s.weather = words.WEATHER["rainy"]
    s.hero.trait = s.dice.pick(("kind", "greedy", "shy", "impatient", "gentle", "proud"))
    s.open(0.0)
    place = s.place()
    cover = s.own(s.hero, s.thing("shelter"))
    s.scene()
    s.reach(place)
    s.do("storm", place=place)
    s.do("shelter", thing=cover)
    guests = [s.stranger(place) for _ in range(2)]
    for number, guest in enumerate(guests):
        s.do("knock", guest, other=s.hero, thing=cover, note=("first", "second")[number])
        if s.hero.trait in ("greedy", "impatient", "proud") and number == 0:
            s.do("no_room", other=guest, thing=cover)
            s.do("guilt", note="cold", other=guest)
        s.do("room", other=guest, thing=cover)
    s.do("warm", other=guests[0], tool=cover, note=guests[1].name)
    s.scene()
    s.do("storm_over")
    if s.dice.chance(0.6):
        s.do("gift_back", guests[1], other=s.hero, thing=cover)
    s.do("make_up", guests[0], other=s.hero, note="shelter", thing=cover)
    s.lesson = "room"
    s.close()


def honest(s: Story) -> None:
    """The hero finds something precious that belongs to somebody else."""
    prize = s.thing("treasure")
    s.hero.trait = s.dice.pick(
        ("greedy", "proud", "curious", "careless", "boastful", "cheerful", "clever", "impatient")
    )
    s.open(0.35)
    place, far = s.place(), s.place()
    owner = s.elder(far) if s.dice.chance(0.6) else s.stranger(far)
    s.own(owner, prize, at=place)
    s.scene()
    s.reach(place)
    s.do("discover", thing=prize, place=place)
    s.do("take", thing=prize)
    s.do("tempted", thing=prize)
    if s.company():
        s.do("warn", s.friend, other=s.hero, thing=prize)
    s.scene()
    s.reach(far)
    s.do("weep", owner, other=s.hero, thing=prize, place=far)
    s.do("struggle", thing=prize, other=owner)
    s.do("hand_back", thing=prize, other=owner)
    s.do("reward", owner, other=s.hero, thing=prize)
    s.lesson = "honesty"
    s.close()


def chest(s: Story) -> None:
    """A locked box, and the key is somewhere else."""
    s.hero.trait = s.dice.pick(("curious", "impatient", "clever", "stubborn", "patient", "brave"))
    s.effort = 0
    s.open(0.3)
    place = s.place()
    box, key, inside = s.thing("box"), s.thing("key"), s.thing(s.dice.pick(("toy", "treasure", "clothes")))
    s.put(box, place)
    s.trouble(box, "locked")
    s.scene()
    s.go(place)
    s.do("discover_box", thing=box, place=place)
    s.maybe(0.6, "fail", thing=box, note="locked", place=place)
    where, trouble = s.trap(key)
    s.put(key, where)
    s.trouble(key, trouble)
    s.knows(s.hero, key, where)
    s.scene()
    s.ask_around(key, where, "key") if s.dice.chance(0.35) else s.do("know_where", thing=key, place=where)
    s.go(where)
    s.do("spot", thing=key, place=where)
    s.overcome(key)
    s.go(place, "return")
    s.do("free", thing=box, tool=key, note="open")
    s.do("inside", thing=inside, tool=box)
    s.own(s.hero, inside)
    s.do("done", note="box", thing=inside)
    s.lesson = s.lesson if s.lesson in ("ask", "together", "favor") else "try"
    s.close()


def hide_and_seek(s: Story) -> None:
    """One hides, one seeks, and something gives the hiding place away."""
    s.open(0.0)
    friend = s.befriend()
    s.scene()
    s.do("let_us_hide", friend, other=s.hero)
    spot = s.place()
    s.do("hide_self", friend, other=s.hero, place=spot)
    for _ in range(s.dice.pick((1, 1, 2))):
        s.do("go", place=s.place())
        s.do("seek", other=friend)
    clue = s.dice.pick(words.GIVEAWAYS)
    s.scene()
    s.do("go", place=spot)
    s.do("giveaway", friend, other=s.hero, note=clue)
    s.do("found_you", other=friend, place=spot)
    s.maybe(0.5, "next_turn", friend, other=s.hero)
    s.lesson = "listen"
    s.close()


def bedtime(s: Story) -> None:
    """A noise in the night, and what it really was."""
    toy, parent = s.treasure(("toy",)), s.relative()
    s.open(0.0)
    s.do("treasure", thing=toy)
    s.scene()
    s.do("to_bed", thing=toy)
    s.do("noise_night", note=s.dice.pick(("scratch", "knock", "tap", "whoo", "creak")))
    s.do("fear_night", thing=toy)
    s.do("call", other=parent)
    lamp = s.own(parent, s.thing("tool", "shine"))
    s.do("look_after", parent, other=s.hero, tool=lamp)
    s.do("only_night", parent, other=s.hero, note=s.dice.pick(words.NIGHT_NOISES))
    s.do("good_night", parent, other=s.hero, thing=toy)
    s.lesson = s.dice.pick(("ask", "look"))
    s.close(toy, keep=False)


def tidy(s: Story) -> None:
    """A thing that is needed now is somewhere in the mess."""
    s.hero.trait = s.dice.pick(("careless", "lazy", "forgetful", "impatient", "curious"))
    wanted, parent = s.own(s.hero, s.thing(s.dice.pick(("treasure", "clothes", "toy"))), at=s.home), s.relative()
    s.open(0.0)
    s.do("mess")
    s.do("needed", thing=wanted, note=s.dice.pick(words.OCCASIONS))
    s.do("rummage", thing=wanted)
    s.scene()
    s.do("tidy_first", parent, other=s.hero, thing=wanted)
    for spot in s.dice.sample(words.SPOTS, 2):
        s.do(
            "turned_up", thing=s.own(s.hero, s.thing(s.dice.pick(("treasure", "clothes", "toy"))), at=s.home), note=spot
        )
    s.do("there_it_is", thing=wanted, note=s.dice.pick(words.SPOTS))
    s.do("take", thing=wanted)
    s.lesson = "tidy"
    s.do("recover", thing=wanted)
    s.close(wanted, keep=False)


def swap(s: Story) -> None:
    """Two friends trade toys, and each finds out what the old one was worth."""
    mine = s.treasure(("toy",))
    s.open(0.0)
    friend = s.befriend()
    theirs = s.own(friend, s.thing("toy"))
    s.do("treasure", thing=mine)
    s.do("has_too", friend, thing=theirs)
    s.scene()
    place = s.place()
    s.go(place)
    s.do("envy", other=friend, thing=theirs, tool=mine)
    s.do("trade", other=friend, thing=theirs, tool=mine, note="toys")
    s.do("play", thing=theirs)
    s.do("misses", thing=mine, other=friend)
    s.scene()
    s.do("swap_back", friend, other=s.hero, thing=mine, tool=theirs)
    s.do("trade", other=friend, thing=mine, tool=theirs, note="back")
    s.do("recover", thing=mine)
    s.lesson = "own"
    s.close(mine)


def picnic(s: Story) -> None:
    """Somebody's lunch is lost, and the others share."""
    meal, other_meal = s.own(s.hero, s.thing("food")), s.thing("food")
    s.open(0.0)
    friend = s.befriend()
    s.own(friend, other_meal)
    place = s.place(avoid="indoors")
    s.scene()
    s.do("picnic", other=friend, thing=meal, tool=other_meal)
    s.go(place)
    s.do("spill", thing=meal, note=s.dice.pick(words.SPILLS))
    s.do("feel", note="sad", because=s.world.events[-1], thing=meal)
    s.do("halve", friend, other=s.hero, thing=other_meal)
    s.do("share_food", friend, other=s.hero, thing=other_meal)
    s.do("thank_food", other=friend, thing=other_meal)
    s.lesson = "share_food"
    s.close()


GOALS = (
    lost,
    stuck,
    kindness,
    truth,
    gift,
    errand,
    make,
    quarrel,
    learn,
    lost_baby,
    grow,
    promise,
    race,
    shelter,
    honest,
    chest,
    hide_and_seek,
    bedtime,
    tidy,
    swap,
    picnic,
)


def make_story(dice: Dice) -> Story:
    """A whole story: a world with its list of events."""
    story = Story(dice)
    dice.pick(GOALS)(story)
    return story
