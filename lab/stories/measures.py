"""The figures of stories, each a mean over prompts with its interval: how varied, repetitive, complete and long."""

import math
import re
from collections.abc import Sequence
from itertools import islice

from lab.intervals import bootstrap_mean, wilson
from lab.stories.words import words_of

METRICS = {  # key -> (heading, how a value is written)
    "distinct_1": ("distinct words", "{:.2f}"),
    "distinct_2": ("distinct 2-grams", "{:.2f}"),
    "distinct_3": ("distinct 3-grams", "{:.2f}"),
    "distinct_4": ("distinct 4-grams", "{:.2f}"),
    "repetition": ("repeated 4-grams", "{:.1%}"),
    "ends": ("ends properly", "{:.0%}"),
    "words": ("words", "{:.0f}"),
    "overlap_words": ("longest overlap, words", "{:.1f}"),
    "overlap_characters": ("longest overlap, characters", "{:.0f}"),
}
CLOSED = re.compile(r"""[.!?…]["'”’)\]*]*$""")


def measure(groups: Sequence[Sequence[dict]], overlaps: Sequence[tuple[int, int]] | None) -> dict[str, dict | None]:
    """The METRICS of stories, each {"mean", "low", "high"} over groups, or None where nothing is known.

    groups: the completions of each prompt, as `write_stories` yields them.  overlaps: of each of them, in that order.
    """
    texts = [[story["text"] for story in group] for group in groups]
    values = {f"distinct_{n}": [distinct(group, n) for group in texts] for n in (1, 2, 3, 4)}
    values["repetition"] = [_mean([repetition(text) for text in group]) for group in texts]
    values["ends"] = [_mean([ends_properly(s["text"], s["ended"]) for s in group]) for group in groups]
    values["words"] = [_mean([len(words_of(text)) for text in group]) for group in texts]
    results = {key: bootstrap_mean(own) for key, own in values.items()}
    results["ends"] = _share(values["ends"])
    rest = iter(overlaps or ())
    per_group = [list(islice(rest, len(group))) for group in groups]
    for i, key in enumerate(("overlap_words", "overlap_characters")):
        own = [_mean([pair[i] for pair in group]) for group in per_group]
        results[key] = bootstrap_mean(own) if overlaps is not None else None
    return results


def distinct(texts: Sequence[str], n: int) -> float:
    """Number of different n-grams of words / number of all of them, over these texts together; nan if there is none.

    Source: Li et al. 2016, arXiv 1510.03055, section 5.3, for n = 1, 2 and over all replies of a system. Here the texts
    are the completions of one prompt, so that the number of prompts changes nothing. Longer texts have fewer: compare
    where texts are about as long (`words`).
    """
    grams = [gram for text in texts for gram in _ngrams(words_of(text), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(text: str, n: int = 4) -> float:
    """Share of n-grams of words that stood in the same text before; nan if it has fewer than n words.

    Source: Welleck et al. 2020, arXiv 1908.04319, seq-rep-n, there over tokens: 1 - different n-grams / n-grams. High
    where a model has fallen into a loop.
    """
    grams = _ngrams(words_of(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else math.nan


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n))))


def ends_properly(text: str, ended: bool) -> bool:
    """Whether the model ended the text itself (EOS) and behind . ! ? or …, perhaps followed by quotes or brackets."""
    return ended and bool(CLOSED.search(text.rstrip()))


def _mean(values: Sequence[float]) -> float:
    """The mean of the values that are known, nan if none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _share(values: Sequence[float]) -> dict[str, float] | None:
    """`bootstrap_mean` of shares. Where all are 0, or all 1, no drawing anew shows a spread: then Wilson's interval."""
    known = [value for value in values if not math.isnan(value)]
    found = bootstrap_mean(known)
    if found is None:
        return None
    if found["mean"] in (0, 1):
        found["low"], found["high"] = wilson(sum(known), len(known))
    return {key: min(1.0, max(0.0, value)) for key, value in found.items()}
