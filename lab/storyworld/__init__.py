"""storyworld: short stories from a small simulated world, the built-in text of this sandbox.

    from lab.storyworld import generate_stories
    for story in generate_stories(3, seed=1):
        print(story)
"""

from collections.abc import Iterator
from itertools import count as count_up

from .goals import make_story
from .telling import Teller, tell_story
from .world import Dice

VERSION = "1"  # part of every seed and of the fingerprint of cached text: change it when stories change


def story(index: int, seed: int | str = 0) -> str:
    """The story with this number under this seed: paragraphs separated by one newline, no blank lines."""
    dice = Dice(f"storyworld/{VERSION}/{seed}/{index}")
    plot = make_story(dice)
    return tell_story(plot.world.events, Teller(plot, dice))


def generate_stories(count: int | None = None, seed: int | str = 0) -> Iterator[str]:
    """`count` stories, or stories without end when count is None; the same seed gives the same stories everywhere.

    Raises: ValueError for a negative count.
    """
    if count is not None and count < 0:
        raise ValueError(f"count={count}: the number of stories must be at least 0, or None for stories without end")
    indices = count_up() if count is None else range(count)
    return (story(index, seed) for index in indices)
