"""The few rules of English that a noun or a verb needs."""

from .words import IRREGULAR, MASS


def article(phrase: str) -> str:
    """The phrase with "a", "an" or "some"; in this vocabulary the first letter tells the sound that decides."""
    if phrase in MASS:
        return f"some {phrase}"
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def ing(verb: str) -> str:
    """ "roll" -> "rolling", "play with" -> "playing with"."""
    head, _, tail = verb.partition(" ")
    form = IRREGULAR[head][1] if head in IRREGULAR else (head[:-1] if head.endswith("e") else head) + "ing"
    return f"{form} {tail}".strip()


def past(verb: str) -> str:
    """ "roll" -> "rolled", "play with" -> "played with"."""
    head, _, tail = verb.partition(" ")
    form = IRREGULAR[head][0] if head in IRREGULAR else head + ("d" if head.endswith("e") else "ed")
    return f"{form} {tail}".strip()
