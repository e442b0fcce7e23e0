"""Pairs of texts that differ in one thing: one agrees with what happened in the story, the other does not.

A story is told up to some event, and that last event is told twice with the same dice: once as it happened, once
with another tool, place, person, cause, feeling or form. The context is therefore the same to the letter. Every pair
carries the facts it rests on, so that anybody can replay the events and decide which text is right.

Which words are frequent, or which text is the shorter one, tells nothing: the pairs of a kind come in twos that either
of these would judge the opposite way (`_balanced`).
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count as count_up
from itertools import cycle, product

from . import words
from .goals import make_story
from .plots import Story
from .telling import Teller, tell_story
from .world import Character, Dice, Event

PAIRS_VERSION = "3"  # part of every seed: change it when the pairs change while the stories stay
MOST_BYTES = 850  # of a whole text, so that most fit into a context of 256 tokens, of 2048 pieces or more
SAMPLED_STORIES = 3000  # from which it is counted how frequent words are; with 1,000 rare nouns come out wrong
SENTENCES_BACK = (1, 2, 3, 4, 5, 6)  # how far back recall reaches, each equally often
_WORD = re.compile(r"\w+|[^\w\s]")
# Wordings at the end of a story that suit the other of the two just as well: nothing decides who said it.
_UNDECIDED = re.compile(r'("Hurray, [^"]*"|tastes better than a whole one,")[^"]*$')
_SENTENCE_END = re.compile(r'[.!?]"?(?=\s)')
Claim = list  # a relation and its arguments, in plain words
Change = tuple[Event, Claim, Claim]  # the altered event, what the good text claims, what the bad text claims

TOOL_EVENTS = ("free", "mend", "light")
# Events in which `actor` does `other` a good turn.
GOOD_TURNS = (
    "free",
    "fetch",
    "lend",
    "share_food",
    "present",
    "hand_back",
    "give_back",
    "forgive",
    "reunite",
    "room",
    "stop_help",
    "deliver",
)
THANKS = ("thank", "thanks_food", "thanks_present", "reward", "thank_food", "praise")
# What brings the opposite feeling, in the order of preference.
OPPOSITE = {
    "recover": "miss",
    "mend": "break",
    "reunite": "lost_baby",
    "brave": "fear",
    "good_night": "fear_night",
    "miss": "recover",
    "mishap": "recover",
    "blow_away": "recover",
}
NAMED_ROLES = ("hero", "friend", "stranger")  # the others are called by what they are: "Mama", "the kitten"
FORMS = "he she him her his himself herself".split()


def affordance(s: Story, at: int, dice: Dice) -> Change | None:
    """The right tool for it, or food to eat, against another thing of the story."""
    event = s.world.events[at]
    slot = "tool" if event.kind in TOOL_EVENTS and event.tool else "thing" if event.kind == "share_food" else None
    if not slot:
        return None
    right = getattr(event, slot)
    others = [thing for thing in _things(s, at) if thing.use != right.use and thing not in (event.thing, event.tool)]
    if right.use == "reach":
        others = [thing for thing in others if thing.kind != "box"]  # one can stand on a box
    if not others:
        return None
    wrong = dice.pick(others)
    return (
        dataclasses.replace(event, **{slot: wrong}),
        ["affords", right.id, right.use],
        ["affords", wrong.id, right.use],
    )


def location(s: Story, at: int, dice: Dice) -> Change | None:
    """Where a thing or somebody is, after the story has told it."""
    event = s.world.events[at]
    what = {"find": event.thing, "tell": event.thing, "remember": event.thing, "found_you": event.other}.get(event.kind)
    told = [
        e
        for e in s.world.events[:at]
        if e.kind in ("leave", "tell", "remember", "follow", "hide_self") and what in (e.thing, e.actor)
    ]
    others = [place for place in _places(s, at) if place is not event.place]
    if not what or not told or not others:
        return None
    wrong = dice.pick(others)
    return dataclasses.replace(event, place=wrong), ["at", what.id, event.place.id], ["at", what.id, wrong.id]


def who_did_it(s: Story, at: int, dice: Dice) -> Change | None:
    """Who did whom a good turn: the thanks go the wrong way round."""
    event = s.world.events[at]
    helped = [(e.actor, e.other) for e in s.world.events[:at] if e.kind in GOOD_TURNS]
    if event.kind not in THANKS or (event.other, event.actor) not in helped or (event.actor, event.other) in helped:
        return None
    wrong = dataclasses.replace(event, actor=event.other, other=event.actor)
    return wrong, ["helped", event.other.id, event.actor.id], ["helped", event.actor.id, event.other.id]


def cause(s: Story, at: int, dice: Dice) -> Change | None:
    """Why somebody feels like that."""
    event = s.world.events[at]
    if event.kind != "feel" or event.because.kind not in OPPOSITE:
        return None
    opposite = OPPOSITE[event.because.kind]
    earlier = [e for e in s.world.events[:at] if e.kind == opposite]
    if not earlier and opposite != "recover":
        return None
    wrong = dataclasses.replace(event.because, kind=opposite) if not earlier else earlier[-1]
    feeling = {"glad": "happy", "sad": "sad"}[event.note]
    claims = [["feels_because", event.actor.id, feeling, why.kind] for why in (event.because, wrong)]
    return dataclasses.replace(event, because=wrong), *claims


def feeling(s: Story, at: int, dice: Dice) -> Change | None:
    """What somebody feels about what has happened."""
    event = s.world.events[at]
    if event.kind != "feel":
        return None
    wrong = dataclasses.replace(event, note={"glad": "sad", "sad": "glad"}[event.note])
    claims = [
        ["feels_because", event.actor.id, {"glad": "happy", "sad": "sad"}[e.note], event.because.kind]
        for e in (event, wrong)
    ]
    return wrong, *claims


@dataclasses.dataclass(eq=False, slots=True)
class Misnamed(Character):
    """Somebody of the story under a name that nobody in it has; the teller still knows who is meant."""

    right_name: str = ""

    id = property(lambda self: self.right_name)


def recall_name(s: Story, at: int, dice: Dice) -> Change | None:
    """What somebody is called, against a name that has not come up."""
    event = s.world.events[at]
    named = [(slot, who) for slot in ("actor", "other") if (who := getattr(event, slot)) and who.role in NAMED_ROLES]
    slots = [slot for slot, who in named if who.pronoun != "it"]
    if not slots:
        return None
    slot = dice.pick(slots)
    who = getattr(event, slot)
    taken = {c.name for e in s.world.events for c in (e.actor, e.other) if c}
    others = [name for name in {"she": words.GIRLS, "he": words.BOYS}[who.pronoun] if name not in taken]
    settings = {field.name: getattr(who, field.name) for field in dataclasses.fields(Character)}
    wrong = Misnamed(**settings | {"name": dice.pick(others)}, right_name=who.name)
    claims = [["called", who.species, name] for name in (who.name, wrong.name)]
    return dataclasses.replace(event, **{slot: wrong}), *claims


def recall_thing(s: Story, at: int, dice: Dice) -> Change | None:
    """What a thing looks like, as told when it first came up."""
    event = s.world.events[at]
    known = {thing.id: thing for thing in _things(s, at)}
    if not event.thing or event.thing.id not in known or not event.thing.adjective:
        return None
    right = event.thing
    table = (
        words.COLORS
        if right.adjective in words.COLORS
        else words.LOOKS[right.stuff or "tool" if right.kind != "food" else "food"].split()
    )
    others = [adjective for adjective in table if adjective != right.adjective]
    wrong = dataclasses.replace(right, adjective=dice.pick(others))
    return (
        dataclasses.replace(event, thing=wrong),
        ["looks", right.id, right.adjective],
        ["looks", right.id, wrong.adjective],
    )


def agreement(s: Story, at: int, dice: Dice) -> Change | None:
    """The pronoun that goes with a name."""
    event = s.world.events[at]
    who = event.actor
    if who.pronoun == "it" or who.role == "family":
        return None
    other = {"she": "he", "he": "she"}[who.pronoun]
    if any(c and c.pronoun == other for e in s.world.events[: at + 1] for c in (e.actor, e.other)):
        return None  # the other pronoun could mean somebody else
    wrong = dataclasses.replace(event, actor=dataclasses.replace(who, pronoun=other))
    return wrong, ["pronoun", who.id, who.pronoun], ["pronoun", who.id, other]


Alter = Callable[[Story, int, Dice], Change | None]  # (story, number of an event, dice) -> the event told otherwise
KINDS: dict[str, tuple[Alter, ...]] = {
    "affordance": (affordance,),
    "location": (location,),
    "who_did_it": (who_did_it,),
    "cause": (cause,),
    "feeling": (feeling,),
    "recall": (recall_name, recall_thing),
    "agreement": (agreement,),
}


def minimal_pairs(count: int, seed: int | str = 0, version: str = "") -> Iterator[dict]:
    """`count` pairs, the kinds in turn. Each is a dict:

    kind                          one of KINDS
    sentence_good, sentence_bad   the whole texts
    sentences_back                how many sentences ago the answer was told last (recall only, else None)
    facts                         cast, things, the state at the start, the events so far (see `Event.record`), and the
                                  claims of both texts
    """
    frequency = _word_counts(version)
    key = f"storyworld/{version}/pairs {PAIRS_VERSION}/{seed}"
    streams = [_balanced(_pairs_of(kind, f"{key}/{kind}"), frequency) for kind in KINDS]
    for done in range(count):
        yield next(streams[done % len(streams)])


def _pairs_of(kind: str, seed: str) -> Iterator[dict]:
    """Pairs of one kind, without end, for recall all distances in turn; not balanced yet."""
    numbers = count_up()
    for back, alter in cycle(product(SENTENCES_BACK if kind == "recall" else (None,), KINDS[kind])):
        made = (_pair(f"{seed}/{number}", kind, alter, back) for number in numbers)
        yield next(pair for pair in made if pair)


def _balanced(pairs: Iterator[dict], frequency: Counter) -> Iterator[dict]:
    """The same pairs in another order, two by two: what word frequency and length say of one, they deny of the other.

    A pair waits until its opposite comes along.
    """
    waiting = defaultdict(deque)
    for pair in pairs:
        by_frequency, by_length = _giveaways(pair, frequency)
        opposite = waiting[-by_frequency, -by_length]
        if opposite:
            yield opposite.popleft()
            yield pair
        else:
            waiting[by_frequency, by_length].append(pair)


def _giveaways(pair: dict, frequency: Counter) -> tuple[int, int]:
    """What a reader without understanding would say: (good has the more frequent words, good is shorter).

    Each 1 for yes, -1 for no, 0 for neither.
    """
    good, bad = pair["sentence_good"], pair["sentence_bad"]
    counts = [Counter(_WORD.findall(text)) for text in (good, bad)]
    total = sum(frequency.values())
    nats = [
        sum(count * math.log((frequency[word] + 0.5) / total) for word, count in sorted(own.items()))
        for own in (counts[0] - counts[1], counts[1] - counts[0])  # what they share says nothing
    ]
    return _sign(round(nats[0] - nats[1], 6)), _sign(len(bad.encode()) - len(good.encode()))


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


@cache
def _word_counts(version: str) -> Counter:
    """How often each word and mark comes in a sample of stories."""
    counts = Counter()
    for number in range(SAMPLED_STORIES):
        dice = Dice(f"storyworld/{version}/words/{number}")
        story = make_story(dice)
        counts.update(_WORD.findall(tell_story(story.world.events, Teller(story, dice))))
    return counts


def _pair(seed: str, kind: str, alter: Alter, wanted: int | None) -> dict | None:
    """A pair of the kind from the story with this seed, if it has one; for recall, of the wanted distance."""
    dice = Dice(seed)
    story = make_story(dice)
    for at in dice.sample(range(2, len(story.world.events)), len(story.world.events) - 2):
        change = alter(story, at, dice)
        if not change:
            continue
        wrong, good_claim, bad_claim = change
        good = _told(story, at, story.world.events[at], seed)
        if len(good.encode()) > MOST_BYTES:
            continue
        bad = _told(story, at, wrong, seed)
        back = _sentences_back(good, bad, good_claim) if kind == "recall" else None
        if _differs_well(kind, good, bad) and back == wanted:
            return {
                "kind": kind,
                "sentence_good": good,
                "sentence_bad": bad,
                "sentences_back": back,
                "facts": facts(story, at, good_claim, bad_claim),
            }
    return None


def _sentences_back(good: str, bad: str, claim: Claim) -> int | None:
    """How many sentences before the point where the texts part the answer stands for the last time; None: nowhere."""
    parting = next((i for i, (a, b) in enumerate(zip(good, bad)) if a != b), min(len(good), len(bad)))
    relation, what, word = claim
    answer = f"{word} {what}" if relation == "looks" else word  # "red kite"; a name
    told = [match.end() for match in re.finditer(rf"\b{re.escape(answer)}\b", good[:parting])]
    return len(_SENTENCE_END.findall(good[told[-1] : parting])) if told else None


def _told(story: Story, at: int, last: Event, seed: str) -> str:
    return tell_story([*story.world.events[:at], last], Teller(story, Dice(f"{seed}/telling")))


def _differs_well(kind: str, good: str, bad: str) -> bool:
    """Whether the change shows in the wording, decides who did it, and (for agreement) shows in pronouns alone."""
    if good == bad or (kind == "who_did_it" and _UNDECIDED.search(good)):
        return False
    if kind != "agreement":
        return True
    words_of = [[word.strip('.,!?"') for word in text.lower().split()] for text in (good, bad)]
    same_length = len(words_of[0]) == len(words_of[1])
    return same_length and all(a == b or (a in FORMS and b in FORMS) for a, b in zip(*words_of, strict=True))


def _things(s: Story, at: int) -> list:
    """The things that the story has mentioned before this event, without doubles."""
    return list({thing.id: thing for e in s.world.events[:at] for thing in (e.thing, e.tool) if thing}.values())


def _places(s: Story, at: int) -> list:
    """The places that the story has led to before this event."""
    return list(
        {e.place.id: e.place for e in s.world.events[:at] if e.place and e.kind in ("go", "return", "leave")}.values()
    )


def facts(story: Story, at: int, good_claim: Claim, bad_claim: Claim) -> dict:
    """Everything needed to judge a pair, as plain words: no object of this package."""
    events = story.world.events[:at]
    things = {t.id: {"adjective": t.adjective, "use": t.use, "kind": t.kind} for t in _things(story, at + 1)}
    cast = {
        c.id: {"species": c.species, "pronoun": c.pronoun}
        for e in [*events, story.world.events[at]]
        for c in (e.actor, e.other)
        if c
    }
    start = {
        table: {key.id: getattr(value, "id", value) for key, value in entries.items()}
        for table, entries in story.world.start.items()
    }
    return {
        "cast": cast,
        "things": things,
        "start": start,
        "events": [e.record() for e in events],
        "good": good_claim,
        "bad": bad_claim,
    }
