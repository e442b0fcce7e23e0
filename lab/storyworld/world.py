"""The simulated world behind a story: who and what there is, the state, and how each event changes it.

Nothing in this file writes English. A plot (plots.py) asks for events, `World.apply` checks that an event is
possible and changes the state, and the list of events is all that the teller (telling.py) gets to see.
"""

import random
from dataclasses import dataclass, field

PRONOUNS = {  # subject, object, possessive, reflexive
    "she": ("she", "her", "her", "herself"),
    "he": ("he", "him", "his", "himself"),
    "it": ("it", "it", "its", "itself"),
}


class Dice:
    """Chance, drawn only from `random.Random.random()`, whose stream Python promises to keep on every platform."""

    def __init__(self, seed: str):
        self.random = random.Random(seed).random

    def pick(self, options):
        """One element of a sequence."""
        return options[int(self.random() * len(options))]

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def sample(self, options, count: int) -> list:
        """`count` different elements, in random order."""
        pool = list(options)
        return [pool.pop(int(self.random() * len(pool))) for _ in range(count)]


@dataclass(eq=False, slots=True)
class Character:
    name: str  # "Amina", "Aunt Rosa", "the kitten"
    species: str  # "girl", "boy", "baker", "fox", ...
    pronoun: str  # "she", "he" or "it"
    trait: str = ""
    skill: str = ""  # what an animal is good at: "climb", "fly", "swim", "dig", "squeeze", "push"
    role: str = "friend"  # hero, friend, elder, stranger, baby

    id = property(lambda self: self.name)


@dataclass(eq=False, slots=True)
class Thing:
    noun: str
    adjective: str
    use: str  # what it is good for: "fly", "wear", "reach", "eat", ...
    kind: str = "toy"  # toy, clothes, treasure, breakable, tool, food, key, box
    stuff: str = ""  # what it is made of, which decides how it is mended
    plural: bool = False
    mass: bool = False  # "some glue", never "a glue"

    id = property(lambda self: self.noun)


@dataclass(eq=False, slots=True)
class Place:
    noun: str
    preposition: str
    features: tuple[str, ...]  # dark, water, tall, soft, cracks, indoors
    adjective: str
    details: tuple[str, ...]  # sentences on what one notices there

    id = property(lambda self: self.noun)


@dataclass(eq=False, slots=True)
class Event:
    """Something that happens. Which of the fields a kind of event uses is seen in EFFECTS and in phrases.py."""

    kind: str
    actor: Character | None = None
    thing: Thing | None = None
    other: Character | None = None
    place: Place | None = None
    tool: Thing | None = None
    note: str = ""  # a variant of the kind, or a word for the sentence
    because: "Event | None" = None
    breaks: bool = False  # a new paragraph starts here

    def record(self) -> dict[str, str]:
        """The event as plain words, so that it can be written to JSON and replayed by anyone."""
        named = {slot: getattr(self, slot) for slot in ("actor", "thing", "other", "place", "tool")}
        words = {slot: entity.id for slot, entity in named.items() if entity is not None}
        because = {"because": self.because.kind} if self.because else {}
        return {"kind": self.kind, **words, **({"note": self.note} if self.note else {}), **because}


@dataclass
class World:
    """The state. Dictionaries, never sets, so that no order depends on the platform."""

    where: dict = field(default_factory=dict)  # Character or Thing lying about -> Place
    holder: dict = field(default_factory=dict)  # Thing -> Character
    owner: dict = field(default_factory=dict)  # Thing -> Character
    trouble: dict = field(
        default_factory=dict
    )  # Thing -> what keeps it from being taken: high, water, buried, crack, heavy, locked
    broken: dict = field(default_factory=dict)  # Thing -> True
    need: dict = field(default_factory=dict)  # Character -> hungry, tired, cold
    feels: dict = field(default_factory=dict)  # Character -> happy, sad, afraid, angry, proud, sorry, thankful
    knows: dict = field(default_factory=dict)  # (Character, Thing) -> Place
    lit: dict = field(default_factory=dict)  # Place -> True when somebody brought light
    events: list = field(default_factory=list)
    start: dict = field(
        default_factory=lambda: {"where": {}, "holder": {}, "owner": {}, "trouble": {}}
    )  # before the first event

    def place_of(self, entity) -> Place:
        """Where somebody or something is; what is carried is where its holder is."""
        carrier = self.holder.get(entity)
        return self.where[carrier] if carrier else self.where[entity]

    def apply(self, event: Event) -> Event:
        """Check the event against the state, change the state, remember the event.

        Raises: ValueError when the event is impossible (taking what is elsewhere, eating what is not food, ...).
        """
        effect = EFFECTS.get(event.kind)
        if effect:
            effect(self, event)
        for slot, feeling in FEELINGS.get(event.kind, ()):
            who = self.owner.get(event.thing) if slot == "owner" else getattr(event, slot)
            if who:
                self.feels[who] = feeling
        self.events.append(event)
        return event


def require(condition: bool, event: Event, rule: str) -> None:
    if not condition:
        raise ValueError(f"event={event.record()}: {rule}")


def _same_place(world: World, event: Event, *entities) -> None:
    here = world.where[event.actor]
    require(all(world.place_of(e) is here for e in entities), event, "all must be at the same place")


def _go_alone(world, e):
    require(world.where[e.actor] is not e.place, e, "the actor is already there")
    world.where[e.actor] = e.place


def _go(world, e):
    _go_alone(world, e)
    if e.other:
        world.where[e.other] = e.place


def _take(world, e):
    _same_place(world, e, e.thing)
    require(e.thing not in world.trouble and e.thing not in world.holder, e, "the thing must be free to take")
    world.holder[e.thing] = e.actor


def _leave(world, e):
    require(world.holder.get(e.thing) is e.actor, e, "only the holder can leave a thing behind")
    del world.holder[e.thing]
    world.where[e.thing] = e.place


def _mishap(world, e):
    """The thing is stuck somewhere: `note` says how."""
    world.holder.pop(e.thing, None)
    world.where[e.thing] = e.place
    world.trouble[e.thing] = e.note


def _steal(world, e):
    _mishap(world, e)
    world.knows.pop((world.owner.get(e.thing), e.thing), None)


def _give(world, e):
    require(world.holder.get(e.thing) is e.actor, e, "only the holder can give a thing away")
    _same_place(world, e, e.other)
    world.holder[e.thing] = e.other


def _present(world, e):
    _give(world, e)
    world.owner[e.thing] = e.other


def _trade(world, e):
    """`actor` gives `tool` and gets `thing` from `other`."""
    require(
        world.holder.get(e.tool) is e.actor and world.holder.get(e.thing) is e.other,
        e,
        "both must hold what they trade",
    )
    world.holder[e.tool], world.holder[e.thing] = e.other, e.actor
    world.owner[e.tool], world.owner[e.thing] = e.other, e.actor


def _eat(world, e):
    require(e.thing.kind == "food" and world.holder.get(e.thing) is e.actor, e, "only food that one holds can be eaten")
    del world.holder[e.thing]
    world.need.pop(e.actor, None)
    if e.other:
        world.need.pop(e.other, None)


def _break(world, e):
    world.broken[e.thing] = True


def _mend(world, e):
    require(e.thing in world.broken, e, "only a broken thing can be mended")
    require(e.tool.use == "mend" and world.holder.get(e.tool) is e.actor, e, "mending takes something to mend with")
    del world.broken[e.thing]


# What each trouble yields to: the use of a tool, or the skill of an animal.
REMEDIES = {
    "high": ("reach", ("climb", "fly")),
    "water": ("scoop", ("swim",)),
    "buried": ("dig", ("dig",)),
    "crack": ("pick", ("squeeze",)),
    "heavy": ("pull", ("push",)),
    "locked": ("open", ()),
}


def _free(world, e):
    """The trouble ends, by a tool that the actor holds or by a skill; whoever it was done for has the thing."""
    use, skills = REMEDIES[world.trouble[e.thing]]
    able = world.holder.get(e.tool) is e.actor and e.tool.use == use if e.tool else e.actor.skill in skills
    require(able, e, f"{world.trouble[e.thing]} takes a tool to {use} or one of the skills {skills}")
    _same_place(world, e, e.thing)
    del world.trouble[e.thing]
    if e.thing.kind != "box":
        world.holder[e.thing] = e.other or e.actor  # an animal that helps hands the thing over


def _tell(world, e):
    require(world.knows.get((e.actor, e.thing)) is e.place, e, "one can only tell what one knows")
    world.knows[e.other, e.thing] = e.place


def _see(world, e):
    _same_place(world, e, e.thing)
    world.knows[e.actor, e.thing] = world.place_of(e.thing)


def _need(world, e):
    world.need[e.actor] = e.note


def _spoil(world, e):
    """Food is lost; it is no longer anywhere."""
    require(e.thing.kind == "food" and world.holder.get(e.thing) is e.actor, e, "only what one holds can be spilled")
    del world.holder[e.thing]
    world.need[e.actor] = "hungry"


def _light(world, e):
    require(e.tool.use == "shine" and world.holder.get(e.tool) is e.actor, e, "light takes a lamp that one holds")
    world.lit[world.where[e.actor]] = True


EFFECTS = {
    "go": _go,
    "return": _go,
    "appear": _go,
    "ahead": _go_alone,
    "hide_self": _go_alone,
    "plod": _go_alone,
    "take": _take,
    "leave": _leave,
    "mishap": _mishap,
    "blow_away": _mishap,
    "steal": _steal,
    "give": _give,
    "lend": _give,
    "give_back": _give,
    "fetch": _give,
    "deliver": _give,
    "hand_back": _give,
    "present": _present,
    "trade": _trade,
    "share_food": _eat,
    "break": _break,
    "mend": _mend,
    "free": _free,
    "tell": _tell,
    "see": _see,
    "find": _see,
    "need": _need,
    "spill": _spoil,
    "light": _light,
}

# How events make people feel. kind: ((whose slot, feeling), ...)
FEELINGS = {
    "miss": (("actor", "sad"),),
    "mishap": (("owner", "sad"),),
    "blow_away": (("owner", "sad"),),
    "steal": (("owner", "sad"),),
    "break": (("owner", "sad"),),
    "recover": (("actor", "happy"),),
    "present": (("other", "happy"),),
    "share_food": (("other", "thankful"),),
    "fear": (("actor", "afraid"),),
    "fear_night": (("actor", "afraid"),),
    "spill": (("actor", "sad"),),
    "misses": (("actor", "sad"),),
    "good_night": (("other", "happy"),),
    "found_you": (("actor", "happy"),),
    "thank_food": (("actor", "thankful"),),
    "guilt": (("actor", "sorry"),),
    "confess": (("actor", "sorry"),),
    "forgive": (("other", "happy"),),
    "refuse": (("other", "sad"),),
    "mock": (("other", "sad"),),
    "succeed": (("actor", "proud"),),
    "fail": (("actor", "sad"),),
    "thank": (("other", "proud"),),
    "mend": (("owner", "happy"),),
    "reunite": (("actor", "happy"),),
    "brave": (("actor", "proud"),),
    "quarrel": (("actor", "angry"), ("other", "angry")),
    "make_up": (("actor", "happy"), ("other", "happy")),
    "deliver": (("other", "happy"),),
    "win": (("actor", "proud"),),
    "lost_baby": (("actor", "sad"),),
}
