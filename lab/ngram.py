"""A well-made n-gram model: what a text gives away to somebody who remembers only the last few tokens.

It is the yardstick for the built-in stories. If a transformer were not clearly better than this model, the text
would hold nothing beyond short phrases.

Source: Chen & Goodman 1998 (Harvard TR-10-98), interpolated modified Kneser-Ney smoothing. Every order mixes its own
estimate with that of the next lower one,

    p(w | h) = (count(h w) - D) / count(h)  +  gamma(h) * p(w | h without its first token),

down to the uniform distribution. D depends on the count (1, 2, 3 or more). Below the highest order, count(h w) is
the number of different tokens seen before "h w". Deviation: the discounts may be scaled by a factor tuned on held-
out text, where their closed form does not fit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Documents = Sequence[Sequence[int]]  # each document as ids: BOS, text tokens, EOS


@dataclass
class Level:
    """One order of the model: sorted keys of n-grams and of their contexts, with what is known about each."""

    keys: np.ndarray  # (number of different n-grams,) int64, sorted
    counts: np.ndarray  # same length: (continuation) counts
    contexts: np.ndarray  # (number of different contexts,) int64, sorted
    totals: np.ndarray  # per context: the sum of counts
    kinds: np.ndarray  # (contexts, 3): how many continuations have count 1, 2, 3 or more
    discounts: np.ndarray  # (3,): what is taken from a count of 1, 2, 3 or more


@dataclass
class NGram:
    """A fitted model: `levels[n - 1]` is the order n."""

    order: int
    vocab_size: int
    levels: list[Level]
    scale: float = 1.0  # factor on all discounts

    def probabilities(self, windows: np.ndarray) -> np.ndarray:
        """Probability of the last token of each window given the tokens before it: (N, order) ids -> (N,)."""
        p = np.full(len(windows), 1.0 / self.vocab_size)
        for n, level in enumerate(self.levels, start=1):
            keys = pack(windows[:, self.order - n :], self.vocab_size)
            at, known = find(level.contexts, keys // self.vocab_size)
            count = np.where(*_lookup(level.keys, level.counts, keys), 0)
            discounts = np.minimum(level.discounts * self.scale, [1.0, 2.0, 3.0])
            kept = count - np.where(count > 0, discounts[np.minimum(count, 3) - 1], 0.0)
            mixed = (kept + level.kinds[at] @ discounts * p) / level.totals[at]
            p = np.where(known, mixed, p)  # a context never seen says nothing: stay with the lower order
        return p

    def nats(self, documents: Documents, skip: Sequence[int] = ()) -> float:
        """Total negative log-likelihood (nats) of all tokens after BOS but those in `skip` (EOS, padding)."""
        windows = _windows(documents, self.order)
        windows = windows[~np.isin(windows[:, -1], list(skip))]
        return float(-np.log(self.probabilities(windows)).sum())


def fit(documents: Documents, order: int, vocab_size: int) -> NGram:
    """Count and smooth. A document is a list of ids that starts with BOS and ends with EOS.

    Raises: ValueError when an n-gram does not fit into 63 bits, or an id is outside the vocabulary.
    """
    if problem := misfit(order, vocab_size):
        raise ValueError(problem)
    windows = _windows(documents, order)
    if windows.size and not 0 <= windows.min() <= windows.max() < vocab_size:
        raise ValueError(f"documents: ids run from {windows.min()} to {windows.max()}, but vocab_size={vocab_size}")
    levels: list[Level] = []
    keys, counts = np.unique(pack(windows, vocab_size), return_counts=True)
    for n in range(order, 0, -1):
        levels.insert(0, _level(keys, counts, vocab_size))
        # The n-grams without their first token; each different n-gram counts once: the continuation count.
        keys, counts = np.unique(keys % vocab_size ** (n - 1), return_counts=True)
    return NGram(order, vocab_size, levels)


def misfit(order: int, vocab_size: int) -> str:
    """Why no model of that order can be fitted; "" if it can."""
    if order >= 1 and order * math.log2(vocab_size) <= 63:
        return ""
    return f"order={order}: order * log2(vocab_size={vocab_size}) must lie between 1 and 63 bits; choose a lower order"


def tune(model: NGram, held_out: Documents, scales: Sequence[float] = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4)) -> NGram:
    """The model with the factor on its discounts that suits the held-out documents best."""
    candidates = [NGram(model.order, model.vocab_size, model.levels, scale) for scale in scales]
    return min(candidates, key=lambda candidate: candidate.nats(held_out))


def bits_per_byte(model: NGram, documents: Documents, texts: Sequence[str], skip: Sequence[int] = ()) -> float:
    """Negative log-likelihood of the tokens but `skip` (EOS, padding) / ln 2 / UTF-8 bytes of the texts."""
    return model.nats(documents, skip) / math.log(2) / sum(len(text.encode("utf-8")) for text in texts)


def _windows(documents: Documents, order: int) -> np.ndarray:
    """Each token after BOS with the order - 1 tokens before it; BOS is repeated before the start: (N, order)."""
    rows = []
    for ids in documents:
        padded = np.concatenate([np.full(max(order - 2, 0), ids[0]), np.asarray(ids)]).astype(np.int64)
        padded = padded[1:] if order == 1 else padded
        rows.append(np.lib.stride_tricks.sliding_window_view(padded, order))
    return np.concatenate(rows)


def pack(windows: np.ndarray, vocab_size: int) -> np.ndarray:
    """Tokens of a row as the digits of one number: (N, n) -> (N,)."""
    keys = np.zeros(len(windows), dtype=np.int64)
    for column in windows.T:
        keys = keys * vocab_size + column
    return keys


def _level(keys: np.ndarray, counts: np.ndarray, vocab_size: int) -> Level:
    contexts, start = np.unique(keys // vocab_size, return_index=True)
    kinds = np.stack(
        [np.add.reduceat(mask, start) for mask in (counts == 1, counts == 2, counts >= 3)], axis=1, dtype=np.int64
    )
    return Level(keys, counts, contexts, np.add.reduceat(counts, start), kinds, _discounts(counts))


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D1, D2, D3+ from the counts of counts (Chen & Goodman 1998); 0.5, 1, 1.5 where there are too few of them."""
    n = [int((counts == c).sum()) for c in (1, 2, 3, 4)]
    if min(n) == 0:
        return np.array([0.5, 1.0, 1.5])
    y = n[0] / (n[0] + 2 * n[1])
    estimate = [c - (c + 1) * y * n[c] / n[c - 1] for c in (1, 2, 3)]
    return np.clip(estimate, 0.05, [0.95, 1.95, 2.95])


def find(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each key stands (0 if nowhere), and whether it is there at all."""
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return at, sorted_keys[at] == keys


def _lookup(sorted_keys: np.ndarray, values: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at, known = find(sorted_keys, keys)
    return known, values[at]
