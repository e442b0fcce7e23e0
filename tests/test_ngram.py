"""lab/ngram.py against the same formulas written out one count at a time, and against the rules of probability."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from lab import ngram

BOS, EOS, V = 0, 1, 6


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    rng = np.random.default_rng(3)
    texts = [rng.choice([2, 2, 2, 3, 3, 4, 5], size=rng.integers(2, 12)) for _ in range(50)]
    return [[BOS, *map(int, text), EOS] for text in texts]


def brute_force(documents: list[list[int]], order: int):
    """Interpolated modified Kneser-Ney as a recursive function p(word, history), straight from the definitions."""
    counts = [Counter() for _ in range(order + 1)]  # counts[n]: n-gram -> (continuation) count
    for ids in documents:
        padded = [BOS] * (order - 2) + ids if order > 1 else ids[1:]
        for end in range(order, len(padded) + 1):
            counts[order][tuple(padded[end - order : end])] += 1
    for n in range(order - 1, 0, -1):
        for gram in counts[n + 1]:  # each different longer n-gram counts once
            counts[n][gram[1:]] += 1
    discounts = []
    for n in range(order + 1):
        t = Counter(counts[n].values())
        if n == 0 or not all(t[c] for c in (1, 2, 3, 4)):
            discounts.append([0.5, 1.0, 1.5])
            continue
        y = t[1] / (t[1] + 2 * t[2])
        raw = [c - (c + 1) * y * t[c + 1] / t[c] for c in (1, 2, 3)]
        discounts.append([min(max(d, 0.05), c - 0.05) for c, d in zip((1, 2, 3), raw)])

    def p(word: int, history: tuple[int, ...], n: int) -> float:
        if n == 0:
            return 1 / V
        history = history[len(history) - (n - 1) :]
        after = {w: counts[n][(*history, w)] for w in range(V) if counts[n][(*history, w)]}
        lower = p(word, history, n - 1)
        if not after:
            return lower
        taken = {w: discounts[n][min(c, 3) - 1] for w, c in after.items()}
        own = after.get(word, 0) - taken.get(word, 0)
        return (own + sum(taken.values()) * lower) / sum(after.values())

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_brute_force_and_sums_to_one(documents, order):
    model, p = ngram.fit(documents, order, V), brute_force(documents, order)
    for history in itertools.product(range(V), repeat=order - 1):
        windows = np.array([[*history, word] for word in range(V)])
        ours = model.probabilities(windows)
        assert ours.sum() == pytest.approx(1, abs=1e-12)
        assert (ours > 0).all()
        assert ours == pytest.approx([p(word, history, order) for word in range(V)], abs=1e-12)


def test_bits_per_byte_counts_every_text_token_once(documents):
    model, p = ngram.fit(documents[:-2], 3, V), brute_force(documents[:-2], 3)
    held_out, texts = documents[-2:], ["eight by", "tés"]  # 8 and 4 bytes
    total = 0.0
    for ids in held_out:
        padded = [BOS, *ids]
        total += sum(-math.log(p(padded[i], tuple(padded[i - 2 : i]), 3)) for i in range(2, len(padded) - 1))
    bits = ngram.bits_per_byte(model, held_out, texts, skip=[EOS])
    assert bits == pytest.approx(total / math.log(2) / 12)
    assert model.nats(held_out) > model.nats(held_out, skip=[EOS])  # EOS is scored unless it is skipped


def test_scaled_discounts_still_sum_to_one_and_the_best_scale_is_taken(documents):
    model = ngram.fit(documents[:-10], 3, V)
    tuned = ngram.tune(model, documents[-10:])
    assert tuned.nats(documents[-10:]) <= model.nats(documents[-10:])
    windows = np.array([[2, 3, word] for word in range(V)])
    for scale in (0.5, 1.4, 3.0):
        assert ngram.NGram(3, V, model.levels, scale).probabilities(windows).sum() == pytest.approx(1, abs=1e-12)


def test_a_longer_memory_helps_where_the_text_has_one():
    text = [[BOS, *([2, 3, 4, 2, 3, 5] * 10), EOS]] * 5  # after "2 3" it takes the token before to know what comes
    nats = [ngram.fit(text, order, V).nats(text) for order in (1, 2, 3, 4)]
    assert nats == sorted(nats, reverse=True)
    assert nats[3] < 0.5 * nats[2]


def test_bad_input(documents):
    with pytest.raises(ValueError, match="order=8"):
        ngram.fit(documents, 8, 2048)
    with pytest.raises(ValueError, match="order=0"):
        ngram.fit(documents, 0, V)
    with pytest.raises(ValueError, match="vocab_size=4"):
        ngram.fit(documents, 2, 4)
