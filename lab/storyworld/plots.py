"""What happens: a cast and a place are drawn, a goal is chosen, and the characters work their way past what is in between.

`Story` holds one world and offers moves that solve problems in it (`recover`, `overcome`, `fetch_tool`, `reach`, ...). A
move looks at the state of the world, does what helps, and may call other moves: to get the kite out of the tree takes a
ladder, the ladder belongs to the farmer, the farmer wants help first. The goals at the end of the file (`lost`, `gift`,
`quarrel`, ...) set a problem up, solve it through these moves and name the lesson.
"""

from . import words
from .world import REMEDIES, Character, Dice, Event, Place, Thing, World

PEOPLE_SETTINGS = list(words.PLACES)
ANIMAL_SETTINGS = ["farm", "sea", "woods", "mountain"]
TITLES = {"she": ("Aunt", "Miss", "Granny", "Old", "Mrs."), "he": ("Uncle", "Mr.", "Grandpa", "Old", "Mr.")}
TROUBLE_FEATURE = {"high": "tall", "water": "water", "buried": "soft", "crack": "cracks"}


class Story:
    """One story in the making: the dice, the world, the cast, the places not yet used, and what the lesson is."""

    def __init__(self, dice: Dice):
        self.dice, self.world = dice, World()
        self.names = {"she": dice.sample(words.GIRLS, 5), "he": dice.sample(words.BOYS, 5)}
        self.nouns: dict[str, bool] = {}  # every noun names one thing only
        self.animals = dice.chance(0.3)
        self.setting = dice.pick(ANIMAL_SETTINGS if self.animals else PEOPLE_SETTINGS)
        self.places = [self._place(noun) for noun in dice.sample(words.PLACES[self.setting], 6)]
        self.weather = dice.pick(list(words.WEATHER))
        self.hero = self.character("hero")
        self.home = self.place()
        self.put(self.hero, self.home)
        self.friend: Character | None = None
        self.lesson = ""
        self.things: list[Thing] = []
        self.start: dict = {}  # what stood where before the first event, for replays
        self._break = True
        self.effort = 1 + dice.chance(0.55)  # how many obstacles the story can bear

    # Drawing people, places and things

    def _place(self, noun: str) -> Place:
        preposition, features, details = words.PLACES[self.setting][noun]
        return Place(noun, preposition, tuple(features.split()), self.dice.pick(words.PLACE_LOOKS), tuple(details.split("|")))

    def place(self, feature: str = "", avoid: str = "") -> Place:
        """A place not used so far, with the feature if there is one such."""
        fits = [p for p in self.places if (not feature or feature in p.features) and (not avoid or avoid not in p.features)]
        place = self.dice.pick(fits or self.places)
        self.places.remove(place)
        return place

    def name(self, pronoun: str) -> str:
        return self.names[pronoun].pop()

    def character(self, role: str, pronoun: str = "", trait: str = "", skills: tuple[str, ...] = ()) -> Character:
        """A child, or an animal in an animal story or where an animal's skill is needed."""
        pronoun = pronoun or self.dice.pick(("she", "he"))
        trait = trait or self.dice.pick(list(words.TRAITS))
        if self.animals or skills:
            fits = [kind for kind, (skill, _, _) in words.ANIMALS.items() if (not skills or skill in skills) and kind not in self.nouns]
            species = self.dice.pick(fits)
            self.nouns[species] = True
            return Character(self.name(pronoun), species, pronoun, trait, words.ANIMALS[species][0], role)
        return Character(self.name(pronoun), {"she": "girl", "he": "boy"}[pronoun], pronoun, trait, "", role)

    def elder(self, place: Place) -> Character:
        """A grown-up who works at the place."""
        pronoun = self.dice.pick(("she", "he"))
        fits = [job for job, places in words.ELDERS.items() if place.noun in places and job not in self.nouns]
        job = self.dice.pick(fits or ["gardener", "shopkeeper", "fisher", "keeper", "cook", "weaver", "painter", "carpenter"])
        self.nouns[job] = True
        elder = Character(f"{self.dice.pick(TITLES[pronoun])} {self.name(pronoun)}", job, pronoun, "", "", "elder")
        return self.put(elder, place)

    def stranger(self, place: Place, skills: tuple[str, ...] = ()) -> Character:
        return self.put(self.character("stranger", skills=skills or ("climb", "fly", "swim", "dig", "squeeze", "push")), place)

    def put(self, entity, place: Place):
        self.world.where[entity] = place
        return entity

    def thing(self, kind: str, use: str = "", avoid: str = "") -> Thing:
        """A new thing of the kind (with the use); `avoid` names a use that it must not have."""
        table = {"toy": words.TOYS, "clothes": words.CLOTHES, "treasure": words.TREASURES, "tool": words.TOOLS, "food": words.FOODS,
                 "breakable": words.BREAKABLES}[kind]
        fits = [n for n in table if n not in self.nouns and (not use or use == table[n]) and (not avoid or avoid != table[n])]
        noun = self.dice.pick(fits)
        self.nouns[noun] = True
        use, stuff = {"tool": (table[noun], ""), "food": ("eat", ""), "breakable": ("", table[noun])}.get(kind) or table[noun]
        looks = words.FOOD_LOOKS if kind == "food" else words.LOOKS[stuff].split() if stuff else ("old", "big", "good", "sturdy", "long", "")
        adjective = self.dice.pick(words.COLORS) if stuff and self.dice.chance(0.6) else self.dice.pick(looks)
        if adjective in noun:
            adjective = ""
        thing = Thing(noun, adjective, use, kind, stuff, noun in words.PLURALS, noun in words.MASS)
        self.things.append(thing)
        return thing

    def treasure(self, kinds=("toy", "toy", "clothes", "treasure")) -> Thing:
        """Something that the hero owns and loves."""
        thing = self.thing(self.dice.pick(kinds))
        self.own(self.hero, thing)
        return thing

    def own(self, who: Character, thing: Thing) -> Thing:
        self.world.owner[thing] = self.world.holder[thing] = who
        return thing

    # Events

    def scene(self) -> None:
        """The next event starts a new paragraph."""
        self._break = True

    def do(self, kind: str, actor: Character | None = None, **slots) -> Event:
        event = Event(kind, actor or self.hero, breaks=self._break, **slots)
        self._break = False
        return self.world.apply(event)

    def maybe(self, probability: float, kind: str, actor: Character | None = None, **slots) -> None:
        if self.dice.chance(probability):
            self.do(kind, actor, **slots)

    # Moves: what characters do to get on

    def open(self, introduce_friend: float = 0.5) -> None:
        """The opening: who the hero is, where, on what kind of day."""
        sky = self.dice.pick(words.WEATHER[self.weather][1].split("|"))
        if self.dice.chance(0.35):
            self.do("sky", place=self.home, note=sky)
        self.do("intro", place=self.home)
        self.maybe(0.6, "trait", note=self.dice.pick(words.TRAITS[self.hero.trait].split("|")))
        if self.dice.chance(introduce_friend):
            self.befriend()

    def befriend(self, pronoun: str = "") -> Character:
        self.friend = self.put(self.character("friend", pronoun), self.world.where[self.hero])
        self.do("friends", other=self.friend)
        return self.friend

    def reach(self, place: Place) -> None:
        """Go to the place; a dark place may take courage or a light."""
        if self.world.where[self.hero] is place:
            return
        company = self.friend if self.friend and self.world.where[self.friend] is self.world.where[self.hero] else None
        self.do("go", place=place, other=company, note="together" if company else "")
        self.maybe(0.6, "notice", place=place, note=self.dice.pick(place.details))
        if "dark" in place.features and self.effort > 0 and place not in self.world.lit and self.dice.chance(0.6):
            self.effort -= 1
            self.face_the_dark(place, company)

    def face_the_dark(self, place: Place, company: Character | None) -> None:
        self.do("fear", place=place)
        way = self.dice.pick(("light", "song", "friend") if company else ("light", "song", "breath"))
        if way == "light":
            lamp = self.thing("tool", "shine")
            self.world.holder[lamp] = self.hero
            self.do("light", tool=lamp, place=place)
        elif way == "friend":
            self.do("comfort", company, other=self.hero, place=place)
        else:
            self.do("courage", note=way, place=place)
        self.do("brave", place=place)
        self.lesson = self.lesson or "courage"

    def overcome(self, thing: Thing, helper: Character | None = None) -> None:
        """Get at a thing that is stuck: try without help, then a tool, an animal with the right skill, or strong friends."""
        trouble = self.world.trouble[thing]
        use, skills = REMEDIES[trouble]
        if self.hero.skill in skills:
            self.do("free", thing=thing, note=self.hero.skill)
            return
        for _ in range(1 + self.dice.chance(0.35)):
            self.do("fail", thing=thing, note=trouble, place=self.world.where[self.hero])
        self.maybe(0.3, "sigh")
        if helper is None and self.friend and self.friend.skill in skills:
            helper = self.friend
        if helper is None and skills and self.dice.chance(0.35):
            helper = self.stranger(self.world.where[self.hero], skills)
            self.do("meet", other=helper)
            self.do("ask_help", other=helper, thing=thing)
        if helper:
            self.do("free", helper, thing=thing, note=helper.skill, other=self.hero)
            self.do("take", thing=thing)
            self.do("thank", other=helper, thing=thing)
            self.lesson = self.lesson or "help"
            return
        self.scene()
        tool = self.fetch_tool(use, self.world.where[self.hero])
        self.do("free", thing=thing, tool=tool, note=use)

    def fetch_tool(self, use: str, back_to: Place) -> Thing:
        """Think of a tool, get it from where it lies, from a friend or from a grown-up, and come back with it."""
        tool = self.thing("tool", use)
        here = self.world.where[self.hero]
        way = self.dice.pick(("lying", "lend", "lend", "friend") if self.friend else ("lying", "lend", "lend"))
        if way == "friend" and self.world.where[self.friend] is here:
            self.world.holder[tool] = self.friend
            self.world.owner[tool] = self.friend
            self.do("idea", self.friend, other=self.hero, tool=tool)
            self.do("give", self.friend, thing=tool, other=self.hero, note="fetch")
            self.lesson = self.lesson or "together"
            return tool
        place = self.place()
        self.do("idea", tool=tool)
        if way == "lying":
            self.put(tool, place)
            self.do("recall_tool", thing=tool, place=place)
            self.reach(place)
            self.do("take", thing=tool)
        else:
            self.borrow(tool, place)
        self.go_back(back_to)
        return tool

    def go_back(self, place: Place) -> None:
        company = self.friend if self.friend and self.world.where[self.friend] is self.world.where[self.hero] else None
        self.do("return", place=place, other=company, note="together" if company else "")

    def borrow(self, tool: Thing, place: Place) -> None:
        """Ask a grown-up; some want a favor first."""
        elder = self.elder(place)
        self.own(elder, tool)
        self.reach(place)
        self.do("meet", other=elder, place=place, note="elder")
        self.do("ask_for", other=elder, thing=tool)
        if self.effort > 0 and self.dice.chance(0.6):
            self.effort -= 1
            chore = self.dice.pick(("sweep", "carry", "water", "find", "wash"))
            self.do("condition", elder, other=self.hero, thing=tool, note=chore)
            self.do("chore", other=elder, note=chore, place=place)
            self.lesson = self.lesson or "favor"
        self.do("lend", elder, other=self.hero, thing=tool)

    def look_for(self, thing: Thing, found_at: Place) -> None:
        """Search in a wrong place or two, then learn where the thing is: somebody saw it, or one remembers."""
        for _ in range(self.dice.pick((0, 1, 1, 2))):
            if len(self.places) < 3:
                break
            place = self.place()
            if self.dice.chance(0.5):
                decoy = self.thing(self.dice.pick(("toy", "clothes", "treasure")))
                self.put(decoy, place)
                self.reach(place)
                self.do("see", thing=decoy, place=place, note="decoy")
                self.do("search", thing=thing, place=place)
            else:
                self.reach(place)
                self.do("search", thing=thing, place=place)
        if self.dice.chance(0.65):
            here = self.place() if len(self.places) > 2 else self.world.where[self.hero]
            witness = self.elder(here) if self.dice.chance(0.5) else self.stranger(here)
            self.world.knows[witness, thing] = found_at
            self.scene()
            self.reach(here)
            self.do("meet", other=witness, place=here, note=witness.role)
            if self.hero.trait in ("shy", "timid", "proud") and self.dice.chance(0.7):
                self.do("hesitate", other=witness, note=self.hero.trait)
                self.lesson = self.lesson or "ask"
            self.do("ask", other=witness, thing=thing)
            self.do("tell", witness, other=self.hero, thing=thing, place=found_at)
            self.lesson = self.lesson or "ask"
        else:
            self.world.knows[self.hero, thing] = found_at
            self.do("remember", thing=thing, place=found_at)
            self.lesson = self.lesson or "think"

    def recover(self, thing: Thing, place: Place) -> None:
        """Go to where the thing is and get it back, whatever it is stuck in."""
        self.reach(place)
        self.do("find", thing=thing, place=place, note=self.world.trouble.get(thing, ""))
        if thing in self.world.trouble:
            self.overcome(thing)
        if self.world.holder.get(thing) is not self.hero:
            self.do("take", thing=thing)
        self.do("recover", thing=thing)

    def close(self, thing: Thing | None = None) -> None:
        """The end of the day, how everyone feels, and the lesson."""
        self.scene()
        cause = next(e for e in reversed(self.world.events) if self.world.feels.get(self.hero) and e.kind in GLAD)
        self.maybe(0.5, "evening", note=self.dice.pick(words.WEATHER[self.weather][2].split("|")))
        self.do("feel", note="glad", because=cause, thing=thing)
        if thing:
            self.maybe(0.5, "keepsake", thing=thing)
        self.do("moral", note=self.lesson or "friends", thing=thing)


GLAD = ("recover", "thank", "present", "share_food", "mend", "forgive", "reunite", "succeed", "brave", "deliver", "make_up", "win", "bloom", "done")


# Goals. Each sets up a problem, solves it and leaves a lesson.


def lost(s: Story) -> None:
    """Something the hero loves is gone: left behind, blown away, or carried off."""
    careless = s.dice.chance(0.5)
    s.hero.trait = s.dice.pick(("careless", "forgetful", "impatient", "cheerful", "curious")) if careless else s.hero.trait
    toy = s.treasure()
    s.open()
    s.do("treasure", thing=toy)
    s.scene()
    where = s.place()
    if careless:
        s.reach(where)
        s.do("leave", thing=toy, place=where)
        away = s.place()
        s.reach(away)
        s.do("miss", thing=toy)
        s.lesson = s.dice.pick(("care", ""))
    else:
        away = where
        s.reach(away)
        s.maybe(0.5, "play", thing=toy)
        trouble = s.dice.pick(("high", "water", "crack", "buried"))
        feature = TROUBLE_FEATURE[trouble]
        target = s.place(feature)
        if feature not in target.features:
            trouble = ""
        thief = s.stranger(away)
        s.nouns[thief.species] = True
        s.do("steal", thing=toy, other=thief, place=target, note=trouble or "high")
        if not trouble:
            del s.world.trouble[toy]
        s.do("miss", thing=toy)
        where = target
    s.scene()
    s.look_for(toy, where)
    s.scene()
    s.recover(toy, where)
    s.close(toy)


def stuck(s: Story) -> None:
    """The hero's toy lands where it cannot be reached."""
    toy = s.treasure(("toy", "toy", "treasure", "clothes"))
    s.open(0.7)
    s.do("treasure", thing=toy)
    s.scene()
    trouble = s.dice.pick(("high", "water", "crack"))
    place = s.place(TROUBLE_FEATURE[trouble])
    if TROUBLE_FEATURE[trouble] not in place.features:
        trouble = "heavy"
    s.reach(place)
    s.maybe(0.6, "play", thing=toy)
    s.do("mishap", thing=toy, place=place, note=trouble)
    s.do("feel", note="sad", because=s.world.events[-1], thing=toy)
    s.overcome(toy)
    if s.world.holder.get(toy) is not s.hero:
        s.do("take", thing=toy)
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
    s.reach(place)
    trouble = s.dice.pick(("high", "water", "crack", "buried"))
    other = s.stranger(place, REMEDIES[trouble][1])
    s.do("need", other, note="hungry", place=place)
    s.do("beg", other, other=s.hero, thing=food)
    if s.hero.trait in ("greedy", "impatient"):
        s.do("refuse", other=other, thing=food)
        s.do("guilt", other=other, note="refuse")
        s.lesson = "sorry"
    s.do("share_food", thing=food, other=other)
    s.world.holder.pop(food, None)
    s.do("thanks_food", other, other=s.hero, thing=food)
    s.scene()
    target = s.place(TROUBLE_FEATURE[trouble])
    s.do("later")
    s.reach(target)
    s.do("mishap", thing=toy, place=target, note=trouble)
    s.do("fail", thing=toy, note=trouble, place=target)
    s.do("go", other, place=target, note="appear")
    s.do("offer", other, other=s.hero, thing=food)
    s.do("free", other, thing=toy, note=other.skill, other=s.hero)
    s.do("take", thing=toy)
    s.do("thank", other=other, thing=toy)
    s.lesson = s.lesson or "kindness"
    s.close(toy)


GOALS = (lost, stuck, kindness)


def make_story(dice: Dice) -> Story:
    """A whole story as a world with its list of events."""
    story = Story(dice)
    dice.pick(GOALS)(story)
    return story
