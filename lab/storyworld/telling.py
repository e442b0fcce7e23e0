"""From events to sentences: templates, and the bookkeeping that makes names, pronouns and articles come out right.

The template language, small enough to read at a glance:

    [big|small|]        one of the alternatives, at random (may be nested, may be empty)
    {a} {b} {h} {f}     the actor, the other, the hero, the hero's companion: always by name
    {A} {B} ...         the same, but by pronoun where nobody else can be meant
    {a.he} {a.him} {a.his} {a.himself}   always a pronoun;  {A.him} {A.his} a pronoun where it is clear, else the name
    {a.s} {a.name}      "Amina's"; the bare name, even at the first mention
    {t} {u}             the thing, the tool: "a red kite" at first, later "the red kite", "the kite" or "her kite"
    {t.a} {t.the} {t.my} {t.your} {t.noun} {t.it} {t.they} {t.was} {t.is} {t.s} {t.one} {t.use} {t.using} {t.used}
    {p} {p.in} {p.to}   the place: "the old barn", "in the old barn", "to the old barn"
    {n} {why}           the note of the event; a clause about its cause
    {home} {day}        "in a red house by the sea", later "in the red house by the sea"; the day of the week

A first mention introduces: "a fox named Omar", "a red kite". Inside quotation marks a character is called by the bare
name.
"""

import re

from .grammar import article, ing, past
from .phrases import CAUSES, PHRASES
from .plots import Story
from .world import PRONOUNS, Character, Dice, Event, Place, Thing

_TOKEN = re.compile(r"[\[\]|]|\{[^}]*\}|\"|[^\[\]|{}\"]+")
_SENTENCE_START = re.compile(r'(^"?|[.!?] "?|\." |: ")([a-z])')


def compile_template(text: str):
    """A template as a list of plain texts, choices (lists of such lists) and slots (role, form, inside quotes?)."""
    tokens = _TOKEN.findall(text)
    state = {"at": 0, "quoted": False}

    def sequence(stop: str):
        items = []
        while state["at"] < len(tokens) and tokens[state["at"]] not in stop:
            token = tokens[state["at"]]
            state["at"] += 1
            if token == "[":
                items.append(choice())
            elif token[0] == "{":
                role, _, form = token[1:-1].partition(".")
                items.append((role, form, state["quoted"]))
            else:
                state["quoted"] ^= token == '"'
                items.append(token)
        return items

    def choice():
        before, options = state["quoted"], []
        while True:
            state["quoted"] = before
            options.append(sequence("|]"))
            state["at"] += 1
            if tokens[state["at"] - 1] == "]":
                return options

    return sequence("")


def compile_table(table: dict[str, str]) -> dict[str, list]:
    """One template a line: kind -> compiled templates."""
    return {
        kind: [compile_template(line.strip()) for line in lines.strip().splitlines()] for kind, lines in table.items()
    }


TEMPLATES = compile_table(PHRASES)
CAUSE_TEMPLATES = compile_table(CAUSES)


class Teller:
    """Tells the events of one story. It remembers who and what has been mentioned, and when."""

    def __init__(self, story: Story, dice: Dice):
        self.dice, self.hero, self.friend = dice, story.hero, story.friend
        self.home, self.day = story.home_words, story.day
        self.owner = {thing.id: owner for thing, owner in story.world.start["owner"].items()}  # kept up with the events
        self.known = {}  # id of what was mentioned -> True
        self.used = {}  # (kind, number of a wording) -> True, so that no wording comes twice
        self.previous, self.current = {}, {}  # characters named in the previous and in the present sentence group

    def tell(self, event: Event) -> str:
        """The sentence or sentences for one event."""
        if event.breaks:
            self.previous = {}
        self.current = {}
        key = f"{event.kind}.{event.note}" if f"{event.kind}.{event.note}" in TEMPLATES else event.kind
        text = self._render(self._choose(event.kind, TEMPLATES[key]), event)
        self.previous = self.current
        if event.kind in ("present", "trade"):
            self.owner[event.thing.id] = event.other if event.kind == "present" else event.actor
        if event.kind == "trade":
            self.owner[event.tool.id] = event.other
        return _SENTENCE_START.sub(lambda m: m.group(1) + m.group(2).upper(), text)

    def _choose(self, kind: str, options: list):
        """One of the wordings, if possible one that this kind of event has not had yet in this story."""
        start = int(self.dice.random() * len(options))
        order = [(start + step) % len(options) for step in range(len(options))]
        index = next((i for i in order if (kind, i) not in self.used), start)
        self.used[kind, index] = True
        return options[index]

    def _render(self, items, event: Event) -> str:
        parts = []
        for item in items:
            if isinstance(item, str):
                parts.append(item)
            elif isinstance(item, list):
                parts.append(self._render(self.dice.pick(item), event))
            else:
                parts.append(self._slot(event, *item))
        return "".join(parts)

    def _slot(self, event: Event, role: str, form: str, quoted: bool) -> str:
        if role == "n":
            return _NOTE_FORMS[form](event.note)
        if role == "day":
            return self.day
        if role == "home":
            home, self.home = self.home, self.home.replace(" a ", " the ", 1)  # "in a hut", later "in the hut"
            return home
        if role == "why":
            return self._render(self.dice.pick(CAUSE_TEMPLATES[event.because.kind]), event.because)
        entity = self._entity(event, role.lower())
        if isinstance(entity, Character):
            return self._character(entity, form, role.isupper(), quoted)
        if isinstance(entity, Place):
            return self._place(entity, form)
        return self._thing(entity, form, event.actor, quoted)

    def _entity(self, event: Event, role: str):
        return {
            "a": event.actor,
            "b": event.other,
            "h": self.hero,
            "f": self.friend,
            "t": event.thing,
            "u": event.tool,
            "p": event.place,
        }[role]

    # Characters

    def _character(self, who: Character, form: str, may_be_pronoun: bool, quoted: bool) -> str:
        if form in ("trait", "species"):
            return getattr(who, form)
        if form == "kind":
            return article(f"{who.trait} {who.species}") if who.trait else article(who.species)
        if form == "name":
            self.known[who.id] = self.current[who.id] = who
            return who.name
        subject, objective, possessive, reflexive = PRONOUNS[who.pronoun]
        forms = {"": subject, "he": subject, "him": objective, "his": possessive, "himself": reflexive}
        if form and not may_be_pronoun and form != "s":
            return forms[form]
        pronoun = self.dice.chance(0.7) and may_be_pronoun and self._is_clear(who)
        self.current[who.id] = who
        if pronoun:
            return forms[form]
        name = who.name if quoted else self._name(who)
        return name + "'s" if form in ("his", "s") else name

    def _is_clear(self, who: Character) -> bool:
        """A pronoun is clear when its owner was just named and nobody else with the same pronoun was."""
        if who.id not in self.previous and who.id not in self.current:
            return False
        others = [*self.previous.values(), *self.current.values()]
        return all(other.id == who.id or other.pronoun != who.pronoun for other in others)

    def _is_alone(self, who: Character) -> bool:
        """Named in the present sentence group, with nobody else of the same pronoun in it."""
        return who.id in self.current and all(
            other.id == who.id or other.pronoun != who.pronoun for other in self.current.values()
        )

    def _name(self, who: Character) -> str:
        if who.id in self.known:
            return who.name
        self.known[who.id] = True
        if who.role in ("hero", "family", "mother"):
            return who.name
        if who.role == "elder":
            return f"{who.name} the {who.species}"
        if who.role == "baby":
            return article(who.species)
        return f"{article(who.species)} named {who.name}"

    # Things and places

    def _thing(self, thing: Thing, form: str, actor: Character | None, quoted: bool) -> str:
        full, plural = f"{thing.adjective} {thing.noun}".strip(), thing.plural
        if form in _THING_WORDS:
            return _THING_WORDS[form][plural]
        if form in ("use", "using", "used"):
            return {"use": str, "using": ing, "used": past}[form](thing.use)
        if form == "noun":
            return thing.noun
        short = full if self.dice.chance(0.65) else thing.noun
        say_whose = self.dice.chance(0.5)  # drawn in any case, so that another thing in its place changes nothing else
        first = thing.id not in self.known
        self.known[thing.id] = True
        if form == "a" or (first and not form and not quoted and thing.id not in self.owner):
            return f"a pair of {full}" if plural else f"some {full}" if thing.mass else article(full)
        if form in ("my", "your"):
            return f"{form} {short}"
        owner = self.owner.get(thing.id)
        if form == "the" or quoted or owner is None:
            return f"the {full if first else short}"
        if actor and owner.id == actor.id and self._is_alone(owner) and (first or say_whose):
            return f"{PRONOUNS[owner.pronoun][2]} {full if first else short}"
        return f"{owner.name}'s {full}" if first and owner.id in self.known else f"the {full if first else short}"

    def _place(self, place: Place, form: str) -> str:
        first = place.id not in self.known
        self.known[place.id] = True
        in_full = self.dice.chance(0.45) or first
        name = f"the {place.adjective} {place.noun}" if in_full and place.adjective else f"the {place.noun}"
        return {"in": f"{place.preposition} {name}", "to": f"to {name}", "from": f"from {name}"}.get(form, name)


# Words that agree with a thing: singular, plural.
_THING_WORDS = {
    "it": ("it", "them"),
    "they": ("it", "they"),
    "was": ("was", "were"),
    "is": ("is", "are"),
    "s": ("s", ""),
    "this": ("this", "these"),
    "isnt": ("isn't", "aren't"),
    "one": ("one", "some"),
}


_NOTE_FORMS = {
    "": str,
    "a": article,
    "cap": lambda note: note[0].upper() + note[1:],
    "low": lambda note: note[0].lower() + note[1:],
    "be": lambda note: "was" if note.startswith(("a ", "an ")) else "were",
}


def tell_story(events: list[Event], teller: Teller) -> str:
    """The whole story: paragraphs separated by one newline."""
    paragraphs: list[list[str]] = [[]]
    for event in events:
        if event.breaks and paragraphs[-1]:
            paragraphs.append([])
        paragraphs[-1].append(teller.tell(event))
    return "\n".join(" ".join(sentences) for sentences in paragraphs)
