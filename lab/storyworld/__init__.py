"""storyworld: short stories from a small simulated world, the built-in text of this sandbox.

    from lab.storyworld import generate_stories, minimal_pairs
    for story in generate_stories(3, seed=1):
        print(story)

How a story comes about, and where to read on: words.py (the vocabulary), world.py (the state of the world and the
events that change it), plots.py (how characters solve problems), goals.py (what the stories are about), phrases.py
(the wordings), telling.py (from events to sentences), pairs.py (right and wrong continuations).
"""

from collections.abc import Iterator
from itertools import count as count_up

from . import pairs
from .goals import make_story
from .telling import Teller, tell_story
from .world import Dice

VERSION = "2"  # part of every seed and of the fingerprint of cached text: change it when stories change
SPLITS = ("train", "valid")

__all__ = ["SPLITS", "VERSION", "documents", "generate_stories", "minimal_pairs", "story"]


def story(index: int, seed: int | str = 0) -> str:
    """The story with this number under this seed: paragraphs separated by one newline, no blank lines."""
    key = f"storyworld/{VERSION}/{seed}/{index}"
    plot = make_story(Dice(key))
    return tell_story(plot.world.events, Teller(plot, Dice(f"{key}/telling")))


def generate_stories(count: int | None = None, seed: int | str = 0) -> Iterator[str]:
    """`count` stories, or stories without end when count is None; the same seed gives the same stories everywhere.

    Raises: ValueError for a negative count.
    """
    if count is not None and count < 0:
        raise ValueError(f"count={count}: the number of stories must be at least 0, or None for stories without end")
    indices = count_up() if count is None else range(count)
    return (story(index, seed) for index in indices)


def documents(split: str, size_bytes: int | None = None, count: int | None = None, seed: int = 0) -> Iterator[str]:
    """The stories of a split ("train" or "valid", made from different seeds): the first `count`, or as many as make up
    `size_bytes` of UTF-8 text, whichever comes first; without both, stories without end.

    Raises: ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; choose from {', '.join(SPLITS)}")
    return _first(generate_stories(count, seed=seed if split == "train" else f"{seed}, validation"), size_bytes)


def _first(stories: Iterator[str], size_bytes: int | None) -> Iterator[str]:
    total = 0
    for text in stories:
        if size_bytes is not None and total >= size_bytes:
            return
        total += len(text.encode("utf-8"))
        yield text


def minimal_pairs(count: int, seed: int | str = 0) -> Iterator[dict]:
    """Pairs of texts that differ in one fact; see pairs.py. Keys: kind, sentence_good, sentence_bad,
    sentences_back, facts."""
    return pairs.minimal_pairs(count, seed, VERSION)
