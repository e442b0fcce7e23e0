"""What happens: a cast and a setting are drawn, a goal is chosen, and the characters work their way past what is in
between.

`Story` holds one world and offers moves that solve problems in it (`recover`, `overcome`, `fetch_tool`, `reach`,
...). A move looks at the state of the world, does what helps, and may call other moves: to get the kite down takes a
ladder, the ladder belongs to the farmer, the farmer wants some help first. The goals in goals.py (`lost`, `gift`,
`quarrel`, ...) set a problem up, solve it through these moves and leave a lesson.
"""

from . import words
from .grammar import article
from .world import REMEDIES, Character, Dice, Event, Place, Thing, World

ANIMAL_SETTINGS = ("farm", "sea", "woods", "mountain")
TITLES = {"she": ("Aunt", "Miss", "Granny", "Old", "Mrs."), "he": ("Uncle", "Mr.", "Grandpa", "Old", "Mr.")}
TROUBLES = {
    "high": "tall",
    "water": "water",
    "buried": "soft",
    "crack": "cracks",
}
STUCK_AS = {
    "high": "stuck high up",
    "water": "floating on the water",
    "buried": "half under the earth",
    "crack": "deep down in a crack",
    "heavy": "under something very heavy",
}
SKILLS = ("climb", "fly", "swim", "dig", "squeeze", "push")
GLAD = (
    "recover",
    "thank",
    "present",
    "share_food",
    "mend",
    "forgive",
    "reunite",
    "succeed",
    "brave",
    "deliver",
    "make_up",
    "win",
    "harvest",
    "done",
    "reward",
    "found_you",
    "good_night",
    "thank_food",
)


class Story:
    """One story in the making: the dice, the world, the cast, the places not used so far, and what the lesson is."""

    def __init__(self, dice: Dice):
        self.dice, self.world = dice, World()
        self.names = {"she": dice.sample(words.GIRLS, 6), "he": dice.sample(words.BOYS, 6)}
        self.taken: dict[str, bool] = {}  # nouns in use: every noun names one thing only
        self.animals = dice.chance(0.3)
        self.setting = dice.pick(ANIMAL_SETTINGS if self.animals else list(words.PLACES))
        self.places = [self._place(noun) for noun in dice.sample(words.PLACES[self.setting], 7)]
        self.home = Place("house", "in", (), "", ())
        self.home_words = self._home_words()
        self.weather = words.WEATHER[dice.pick(list(words.WEATHER))]
        self.day = dice.pick(words.DAYS)
        self.hero = self.put(self.character("hero"), self.home)
        self.friend: Character | None = None
        self.lesson = ""
        self.effort = int(dice.chance(0.4))  # how many more obstacles the story can bear
        self.told_sky = False  # whether the weather has been mentioned
        self._break = False

    # Drawing people, places and things

    def _home_words(self) -> str:
        """Where the hero lives: "in a red house by the sea"."""
        pattern = self.dice.pick(words.HOMES[self.setting].split("|"))
        look, color = self.dice.pick(words.HOME_LOOKS), self.dice.pick(words.HOUSE_COLORS)
        return pattern.replace("a *", article(look)).replace("*", look).replace("#", color)

    def _place(self, noun: str) -> Place:
        preposition, features, details = words.PLACES[self.setting][noun]
        looks = words.PLACE_LOOKS["inside" if "indoors" in features or "dark" in features else "outside"]
        adjective = self.dice.pick([look for look in looks if look not in noun.split()])
        return Place(noun, preposition, tuple(features.split()), adjective, tuple(details.split("|")))

    def place(self, feature: str = "", avoid: str = "") -> Place:
        """A place not used so far, with the one feature and without the other if there is such a place."""
        fits = [p for p in self.places if (not feature or feature in p.features) and avoid not in p.features]
        place = self.dice.pick(fits or self.places)
        self.places.remove(place)
        return place

    def trap(self, thing: Thing, troubles=("high", "water", "crack", "buried")) -> tuple[Place, str]:
        """A place and a way for the thing to get stuck there."""
        trouble = self.dice.pick(("water", "buried") if thing.noun in words.BULKY else troubles)
        place = self.place(TROUBLES[trouble])
        return place, trouble if TROUBLES[trouble] in place.features else "heavy"

    def character(
        self, role: str, pronoun: str = "", traits: tuple[str, ...] = (), skills: tuple[str, ...] = ()
    ) -> Character:
        """A child; an animal in an animal story, or wherever the skill of an animal is asked for."""
        pronoun = pronoun or self.dice.pick(("she", "he"))
        trait = self.dice.pick(traits or list(words.TRAITS))
        name = self.names[pronoun].pop()
        if not self.animals and not skills:
            return Character(name, {"she": "girl", "he": "boy"}[pronoun], pronoun, trait, "", role)
        species = self.noun([kind for kind, skill in words.ANIMALS.items() if not skills or skill in skills])
        return Character(name, species, pronoun, trait, words.ANIMALS[species], role)

    def noun(self, options) -> str:
        """One of the nouns that no other thing or animal of this story has."""
        noun = self.dice.pick([option for option in options if option not in self.taken])
        self.taken[noun] = True
        return noun

    def elder(self, place: Place) -> Character:
        """A grown-up who works at the place."""
        pronoun = self.dice.pick(("she", "he"))
        fits = [job for job, places in words.ELDERS.items() if place.noun in places and job not in self.taken]
        job = self.noun(fits or ("traveler", "neighbor", "cleaner"))
        name = f"{self.dice.pick(TITLES[pronoun])} {self.names[pronoun].pop()}"
        return self.put(Character(name, job, pronoun, "", "", "elder"), place)

    def relative(self) -> Character:
        """A grown-up of the hero's family, at home."""
        pronoun = self.dice.pick(("she", "he"))
        return self.put(
            Character(self.dice.pick(words.FAMILY[pronoun]), "grown-up", pronoun, "", "", "family"), self.home
        )

    def stranger(self, place: Place, skills: tuple[str, ...] = SKILLS) -> Character:
        return self.put(self.character("stranger", skills=skills), place)

    def put(self, entity, place: Place):
        """The character or thing was at this place from the beginning."""
        self.world.where[entity] = self.world.start["where"][entity] = place
        return entity

    def own(self, who: Character, thing: Thing, at: Place | None = None) -> Thing:
        """The thing belonged to somebody from the beginning, who carries it, or keeps it at a place."""
        self.world.owner[thing] = self.world.start["owner"][thing] = who
        if at:
            return self.put(thing, at)
        self.world.holder[thing] = self.world.start["holder"][thing] = who
        return thing

    def trouble(self, thing: Thing, trouble: str) -> None:
        self.world.trouble[thing] = self.world.start["trouble"][thing] = trouble

    def knows(self, who: Character, thing: Thing, place: Place) -> None:
        self.world.knows[who, thing] = place

    def thing(self, kind: str, use: str = "", nouns: tuple[str, ...] = ()) -> Thing:
        """A new thing of the kind: any, one with the use, or one of the nouns."""
        table = words.THINGS[kind]
        noun = self.noun(nouns or [n for n, facts in table.items() if not use or facts[0] == use])
        use, stuff = table[noun]
        looks = words.LOOKS[stuff or kind].split()
        adjective = self.dice.pick(words.COLORS) if stuff and self.dice.chance(0.6) else self.dice.pick(looks)
        if adjective in noun.split() or adjective == stuff:
            adjective = "little" if noun not in words.MASS else "fresh"
        return Thing(noun, adjective, use, kind, stuff, noun in words.PLURALS, noun in words.MASS)

    def treasure(self, kinds=("toy", "toy", "toy", "clothes", "treasure")) -> Thing:
        """Something that the hero owns and loves."""
        return self.own(self.hero, self.thing(self.dice.pick(kinds)))

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

    def open(self, friend: float = 0.4) -> None:
        """Who the hero is, where, on what kind of day, and perhaps with whom."""
        self.told_sky = self.dice.chance(0.3)
        if self.told_sky:
            self.do("sky", note=self.dice.pick(self.weather[1].split("|")))
        self.do("intro")
        self.maybe(0.25, "trait", note=self.dice.pick(words.TRAITS[self.hero.trait].split("|")))
        if self.dice.chance(friend):
            self.befriend()

    def befriend(self, traits: tuple[str, ...] = ()) -> Character:
        self.friend = self.put(self.character("friend", traits=traits), self.world.where[self.hero])
        self.do("friends", other=self.friend)
        return self.friend

    def company(self) -> Character | None:
        """The friend, if they are at the same place."""
        near = self.friend and self.world.where[self.friend] is self.world.where[self.hero]
        return self.friend if near else None

    def go(self, place: Place, kind: str = "go") -> None:
        if self.world.where[self.hero] is place:
            return
        company = self.company()
        self.do(kind, place=place, other=company, note="together" if company else "")

    def reach(self, place: Place) -> None:
        """Go to a place and look around; a dark place may take courage or a light."""
        if self.world.where[self.hero] is place:
            return
        company = self.company()
        self.go(place)
        if company and self.dice.chance(0.12):
            self.do("chat", other=company)
        dark = "dark" in place.features and place not in self.world.lit
        if dark and self.effort > 0 and self.hero.trait != "brave" and self.dice.chance(0.4):
            self.effort -= 1
            self.face_the_dark(place)
        else:
            self.maybe(0.2, "notice", place=place, note=self.dice.pick(place.details))

    def face_the_dark(self, place: Place) -> None:
        company = self.company()
        self.do("fear", place=place)
        way = self.dice.pick(("light", "song", "friend") if company else ("light", "song", "breath"))
        if way == "light":
            lamp = self.thing("tool", "shine")
            self.own(self.hero, lamp)
            self.do("light", tool=lamp, place=place)
        elif way == "friend":
            self.do("comfort", company, other=self.hero, place=place)
            self.lesson = self.lesson or "together"
        else:
            self.do("courage", note=way, place=place)
        self.do("brave", place=place)
        self.lesson = self.lesson or "courage"

    def mishap(self, thing: Thing, place: Place, trouble: str) -> None:
        blown = trouble == "high" and thing.stuff in words.LIGHT
        self.do("blow_away" if blown else "mishap", thing=thing, place=place, note=trouble)

    def overcome(self, thing: Thing) -> None:
        """Get at a thing that is stuck: try alone first, then with an animal's skill or with a tool."""
        trouble, here = self.world.trouble[thing], self.world.where[self.hero]
        use, skills = REMEDIES[trouble]
        if self.hero.skill in skills:
            self.do("free", thing=thing, note=self.hero.skill)
            self.lesson = self.lesson or "think"
            return
        self.do("fail", thing=thing, note=trouble, place=here)
        if self.hero.trait in ("proud", "stubborn", "boastful", "impatient") and self.dice.chance(0.4):
            self.do("alone")
            self.do("fail", thing=thing, note=trouble, place=here)
            self.lesson = self.lesson or "ask"
        if self.company():
            self.maybe(0.4, "cheer_up", self.friend, other=self.hero)
        else:
            self.maybe(0.25, "sigh")
        self.scene()
        if skills and ((self.company() and self.friend.skill in skills) or self.dice.chance(0.35)):
            self.be_helped(thing, skills)
            return
        tool = self.fetch_tool(use, here)
        self.do("free", thing=thing, tool=tool, note={"dig": "dig_out"}.get(use, use))
        if self.world.owner.get(tool) and self.world.owner[tool].role == "elder" and self.dice.chance(0.2):
            self.go(self.world.where[self.world.owner[tool]], "return")
            self.do("give_back", thing=tool, other=self.world.owner[tool])

    def be_helped(self, thing: Thing, skills: tuple[str, ...]) -> None:
        """The friend or a passing animal has just the right skill."""
        helper = self.company()
        if not helper or helper.skill not in skills:
            helper = self.stranger(self.world.where[self.hero], skills)
            self.do("meet", other=helper, note="helper")
        self.do("ask_help", other=helper, thing=thing)
        self.do("free", helper, thing=thing, note=helper.skill, other=self.hero)
        self.do("thank", other=helper, thing=thing)
        self.lesson = self.lesson or "ask"

    def fetch_tool(self, use: str, back_to: Place, nouns: tuple[str, ...] = ()) -> Thing:
        """Think of a tool, get it from where it lies, from the friend or from a grown-up, and come back with it."""
        tool = self.thing("tool", use, nouns)
        if self.company() and self.dice.chance(0.35):
            self.own(self.friend, tool)
            self.do("idea", self.friend, other=self.hero, tool=tool, note="friend")
            self.do("fetch", self.friend, thing=tool, other=self.hero)
            self.lesson = self.lesson or "together"
            return tool
        place = self.place()
        self.do("idea", tool=tool)
        if self.dice.chance(0.4):
            self.put(tool, place)
            self.do("recall_tool", thing=tool, place=place)
            self.reach(place)
            self.beside(place)
            self.do("take", thing=tool)
            self.lesson = self.lesson or "think"
        else:
            self.borrow(tool, place)
        self.go(back_to, "return")
        return tool

    def beside(self, place: Place) -> None:
        """Sometimes other things lie about."""
        if self.dice.chance(0.25):
            decoy = self.put(self.thing(self.dice.pick(("toy", "clothes", "treasure", "food"))), place)
            self.do("beside", thing=decoy, place=place)

    def borrow(self, tool: Thing, place: Place) -> None:
        """Ask a grown-up for a tool; some want a favor first."""
        elder = self.elder(place)
        self.own(elder, tool)
        self.reach(place)
        self.do("meet", other=elder, place=place, note="elder")
        if self.hero.trait in ("shy", "timid", "proud") and self.dice.chance(0.5):
            self.do("hesitate", other=elder, note=self.hero.trait)
            self.lesson = "ask"
        self.do("ask_for", other=elder, thing=tool)
        if self.effort > 0 and self.dice.chance(0.5):
            self.effort -= 1
            chore = self.dice.pick(("sweep", "carry", "water", "find", "wash"))
            self.do("condition", elder, other=self.hero, thing=tool, note=chore)
            self.do("chore", other=elder, note=chore, place=place)
            self.lesson = self.lesson or "favor"
        self.do("lend", elder, other=self.hero, thing=tool)
        self.lesson = self.lesson or "ask"

    def look_for(self, thing: Thing, found_at: Place) -> None:
        """Search in a wrong place or two, then learn where the thing is: somebody saw it, or one remembers."""
        for _ in range(self.dice.pick((0, 0, 1, 1, 2))):
            place = self.place()
            self.reach(place)
            if self.dice.chance(0.4):
                decoy = self.put(self.thing(self.dice.pick(("toy", "clothes", "treasure"))), place)
                self.do("see", thing=decoy, place=place, note="decoy")
            self.do("search", thing=thing, place=place)
        if self.dice.chance(0.6):
            self.ask_around(thing, found_at)
        elif (self.hero, thing) in self.world.knows:
            self.do("remember", thing=thing, place=found_at)
            self.lesson = self.lesson or "think"
        else:
            self.do("follow", thing=thing, place=found_at)
            self.lesson = self.lesson or "think"

    def ask_around(self, thing: Thing, found_at: Place, note: str = "") -> None:
        """Ask somebody who has seen the thing; `note` says what kind of thing it is, where that changes the words."""
        here = self.place()
        witness = self.elder(here) if self.dice.chance(0.5) else self.stranger(here)
        self.knows(witness, thing, found_at)
        self.scene()
        self.reach(here)
        self.do("meet", other=witness, place=here, note=witness.role)
        if self.hero.trait in ("shy", "timid", "proud") and self.dice.chance(0.7):
            self.do("hesitate", other=witness, note=self.hero.trait)
            self.lesson = "ask"
        self.do("ask", other=witness, thing=thing, note=note)
        self.do("tell", witness, other=self.hero, thing=thing, place=found_at, note=note)
        self.lesson = self.lesson or "ask"

    def recover(self, thing: Thing, place: Place) -> None:
        """Go to where the thing is and get it back, whatever it is stuck in."""
        self.reach(place)
        trouble = self.world.trouble.get(thing)
        if trouble:
            self.do("find_stuck", thing=thing, place=place, note=STUCK_AS[trouble])
            self.overcome(thing)
        else:
            self.do("find", thing=thing, place=place)
            self.do("take", thing=thing)
        self.do("recover", thing=thing)

    def close(self, thing: Thing | None = None, keep: bool = True) -> None:
        """The end of the day, how it feels, and the lesson."""
        self.scene()
        skies = self.weather[2].split("|") if self.told_sky else words.EVENINGS
        self.maybe(0.28, "evening", note=self.dice.pick(skies))
        if self.dice.chance(0.35):
            cause = next(e for e in reversed(self.world.events) if e.kind in GLAD)
            self.do("feel", note="glad", because=cause)
        if thing and keep and self.dice.chance(0.3):
            self.do("keepsake", thing=thing)
        if not self.dice.chance(0.12):
            self.do("moral", note=self.lesson, thing=thing)
