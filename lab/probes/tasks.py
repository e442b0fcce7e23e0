"""The nine synthetic tasks of the capability card: generators, exact solvers, and what guessing would give.

    x, y = draw_rows(TASKS["recall"], level=8, count=32, seed=1)   # (32, T) int64 each; y: -100 where nothing is asked
    TASKS["recall"].solve(row[: t + 1], t)                         # the answer at t, from what stands there

Six are those of "Mechanistic Design and Scaling of Hybrid Architectures" (MAD), Poli et al. 2024, arXiv 2403.17844,
with the settings of its published code (repository athms/mad-lab, configs/tasks) as far as 15 CPU-seconds allow;
`deviates` says where they do not. Added are induction (Olsson et al. 2022, arXiv 2209.11895), parity, the smallest task
whose state has to be tracked, and swapped cups, whose states change in an order that matters: following one thing under
permutations of five is the word problem that "The Illusion of State in State-Space Models" (Merrill et al. 2024, arXiv
2404.08819) shows to be beyond attention and diagonal recurrences of fixed depth, as rows get longer.

Every row is drawn afresh, from uniform numbers of `RandomState`, whose stream NumPy has promised never to change: the
same seed gives the same bytes. Rows whose hash falls into one class of 16 are kept for evaluation, all others are for
training, so that no evaluation row is ever trained on, whatever the seeds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.random import RandomState

IGNORE = -100  # a position where nothing is asked
CLASSES = 16  # one row in so many is kept for evaluation
SYMBOLS = 8  # keys, and as many values: MAD's vocabulary of 16

Rows = tuple[np.ndarray, np.ndarray]  # x and y, (rows, T) int64 each


@dataclass(frozen=True)
class Task:
    """One capability. A copy is trained on all its `levels` of difficulty, in `unit`, easy and hard ones by turns."""

    title: str
    about: str
    unit: str
    levels: tuple[int, ...]  # of the quick card
    more: tuple[int, ...]  # added by the full one
    draw: Callable[[RandomState, int, int], Rows]  # (random numbers, level, rows wanted) -> at most so many rows
    solve: Callable[[Sequence[int], int], int]  # (tokens that stand before the answer, position asked at) -> answer
    vocab: Callable[[int], int]  # hardest level -> size of the vocabulary
    deviates: str = ""  # where it differs from its source
    beyond: bool = False  # also tested, not trained, at twice the hardest level
    late: bool = False  # asked at every position in training, in the second half alone when tested
    whole: bool = False  # all answers are read off the last position: a code of the whole row

    def length(self, level: int) -> int:
        """T, tokens in a row of that level."""
        return self.draw(RandomState(0), level, 8)[0].shape[1]


# ---------------------------------------------------------------- random numbers


def _numbers(rng: RandomState, below: int, *shape: int) -> np.ndarray:
    return (rng.random_sample(shape) * below).astype(np.int64)


def _orders(rng: RandomState, rows: int, n: int) -> np.ndarray:
    """A random order of 0..n-1 for each row: (rows, n)."""
    return rng.random_sample((rows, n)).argsort(axis=1, kind="stable")


def draw_rows(task: Task, level: int, count: int, seed: int, *, held_out: bool = False) -> Rows:
    """`count` rows of a level: of those for training, or of those kept for evaluation. The same seed, the same rows."""
    rng, xs, ys, have = RandomState(seed), [], [], 0
    while have < count:
        x, y = task.draw(rng, level, count * (CLASSES if held_out else 1) + 8)
        wanted = is_held_out(x) == held_out
        xs.append(x[wanted]), ys.append(y[wanted])
        have += len(xs[-1])
    x, y = np.concatenate(xs)[:count], np.concatenate(ys)[:count]
    if held_out and task.late:
        y[:, : y.shape[1] // 2] = IGNORE
    return x, y


def is_held_out(x: np.ndarray) -> np.ndarray:
    """Which rows of x (rows, T) are for evaluation: a fixed hash of their tokens says so."""
    weights = RandomState(20240326).randint(0, 2**62, size=x.shape[1], dtype=np.int64).astype(np.uint64)
    mixed = ((x.astype(np.uint64) + np.uint64(1)) * (weights | np.uint64(1))).sum(axis=1)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(40)) % np.uint64(CLASSES) == 0


def fingerprint(task: Task) -> str:
    """16 hexadecimal digits that stand for a task: its levels, and a fixed sample of training and evaluation rows."""
    digest = hashlib.sha256(repr((task.levels, task.more)).encode())
    for level in (*task.levels, *task.more):
        for held_out in (False, True):
            for rows in draw_rows(task, level, 16, seed=7, held_out=held_out):
                digest.update(np.ascontiguousarray(rows, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------- recall: in context, noisy, fuzzy


def _repeats(which: np.ndarray) -> np.ndarray:
    """Where a row's entry stood earlier in the row; entries below 0 never did: (rows, P) -> bool."""
    same = (which[:, :, None] == which[:, None, :]) & (which >= 0)[:, :, None]
    return np.tril(same, -1).any(axis=-1)


def _pairs(rng: RandomState, rows: int, keys: int, slots: int, noise: float, value_from: int) -> Rows:
    """Key, value, key, value, ...; where a key comes again, its value is asked for. Some slots hold noise instead."""
    pool = max(SYMBOLS, keys)
    own_keys = _orders(rng, rows, pool)[:, :keys]
    own_values = value_from + _orders(rng, rows, pool)[:, :keys]  # no two keys share a value
    which = _numbers(rng, keys, rows, slots)
    is_noise = rng.random_sample((rows, slots)) < noise
    which = np.where(is_noise, -1, which)
    key, value = (np.take_along_axis(own, which.clip(0), axis=1) for own in (own_keys, own_values))
    hum = 2 * value_from + _numbers(rng, 2 * SYMBOLS, rows, slots, 2)
    x = np.where(is_noise[:, :, None], hum, np.stack((key, value), axis=2))
    y = np.full_like(x, IGNORE)
    y[:, :, 0] = np.where(_repeats(which), value, IGNORE)
    return x.reshape(rows, -1), y.reshape(rows, -1)


VALUE_FROM = 32  # values' ids start here: room for 32 keys


def draw_recall(rng: RandomState, keys: int, rows: int) -> Rows:
    return _pairs(rng, rows, keys, slots=max(16, 2 * keys), noise=0.0, value_from=VALUE_FROM)


def draw_noisy(rng: RandomState, percent: int, rows: int) -> Rows:
    return _pairs(rng, rows, keys=4, slots=20, noise=percent / 100, value_from=SYMBOLS)


def solve_recall(row: Sequence[int], t: int) -> int:
    """What stood behind the same key before."""
    return row[list(row[:t]).index(row[t]) + 1]


FUZZY_KEYS, FUZZY_LENGTH = 4, 40


def draw_fuzzy(rng: RandomState, longest: int, rows: int) -> Rows:
    """As recall, but keys and values are motifs of 1 to `longest` tokens; all of a known key's value is asked for."""
    motifs = [_motifs(rng, rows, longest, first) for first in (0, SYMBOLS)]  # keys and values (rows, keys, longest)
    code = (motifs[0] + 1) @ (SYMBOLS + 1) ** np.arange(longest)
    distinct = ~_repeats(code).any(axis=1)
    which = _numbers(rng, FUZZY_KEYS, rows, FUZZY_LENGTH // 2 + 1)
    asked = [np.zeros((*which.shape, longest), bool), np.repeat(_repeats(which)[:, :, None], longest, axis=2)]
    tokens = [np.take_along_axis(motif, which[:, :, None], axis=1) for motif in motifs]
    tokens = np.concatenate(tokens, axis=2).reshape(rows, -1)  # motifs laid end to end, -1 where one is short
    asked = np.concatenate(asked, axis=2).reshape(rows, -1)
    close_up = (tokens < 0).argsort(axis=1, kind="stable")[:, : FUZZY_LENGTH + 1]
    tokens, asked = (np.take_along_axis(part, close_up, axis=1)[distinct] for part in (tokens, asked))
    return tokens[:, :-1], np.where(asked[:, 1:], tokens[:, 1:], IGNORE)


def _motifs(rng: RandomState, rows: int, longest: int, first: int) -> np.ndarray:
    """For each key of each row 1 to `longest` different tokens, then -1: (rows, FUZZY_KEYS, longest)."""
    tokens = _orders(rng, rows * FUZZY_KEYS, SYMBOLS)[:, :longest].reshape(rows, FUZZY_KEYS, longest)
    sizes = 1 + _numbers(rng, longest, rows, FUZZY_KEYS, 1)
    return np.where(np.arange(longest) < sizes, first + tokens, -1)


def solve_fuzzy(row: Sequence[int], t: int) -> int:
    """Reads the row as (key, value) motifs; the last one's key came before, with the whole value."""
    pairs: list[tuple[list[int], list[int]]] = []
    for i, token in enumerate(row[: t + 1]):
        is_key = token < SYMBOLS
        if is_key and (i == 0 or row[i - 1] >= SYMBOLS):
            pairs.append(([], []))
        pairs[-1][0 if is_key else 1].append(token)
    key, so_far = pairs[-1]
    return next(value for earlier, value in pairs if earlier == key)[len(so_far)]


# ---------------------------------------------------------------- copying, compression


BLANK, COPY, LETTERS = 14, 15, 14  # MAD's vocabulary of 16


def draw_copying(rng: RandomState, letters: int, rows: int) -> Rows:
    """Letters among blanks, the copy token, then a blank for each letter, at which it is asked for."""
    text = max(32, 4 * letters) - letters - 1
    places = np.sort(_orders(rng, rows, text)[:, :letters], axis=1)
    drawn = _numbers(rng, LETTERS, rows, letters)
    x = np.full((rows, text + 1 + letters), BLANK)
    np.put_along_axis(x, places, drawn, axis=1)
    x[:, text] = COPY
    y = np.full_like(x, IGNORE)
    y[:, text + 1 :] = drawn
    return x, y


def solve_copying(row: Sequence[int], t: int) -> int:
    copy = list(row).index(COPY)
    return [token for token in row[:copy] if token != BLANK][t - copy - 1]


def draw_compression(rng: RandomState, letters: int, rows: int) -> Rows:
    """Random letters and an end token; each letter is asked for at its own place, from the end token's vector alone."""
    x = _numbers(rng, COPY, rows, letters + 1)
    x[:, -1] = COPY
    return x, np.where(x == COPY, IGNORE, x)


def solve_compression(row: Sequence[int], t: int) -> int:
    return row[t]


# ---------------------------------------------------------------- memorisation, induction


FACTS = (16, 64, 256, 1024)  # sizes of the sets of facts, each with keys and values of its own
ASK = 0


def facts(level: int) -> dict[int, int]:
    """The fixed key -> value pairs of a set."""
    first = sum(n for n in FACTS if n < level)
    keys, values = first + np.arange(level), first + RandomState(level).random_sample(level).argsort(kind="stable")
    return {1 + 2 * int(key): 2 + 2 * int(value) for key, value in zip(keys, values)}


def draw_memorisation(rng: RandomState, level: int, rows: int) -> Rows:
    """Key, ask, key, ask, ...; the value, which never stands in a row, is asked for at `ask`."""
    table = np.array(list(facts(level).items()))[_numbers(rng, level, rows, 8)]  # (rows, 8, 2)
    ask = np.full(table.shape[:2], ASK)
    x = np.stack((table[:, :, 0], ask), axis=2)
    y = np.stack((np.full_like(ask, IGNORE), table[:, :, 1]), axis=2)
    return x.reshape(rows, -1), y.reshape(rows, -1)


ALL_FACTS = {key: value for level in FACTS for key, value in facts(level).items()}


def solve_memorisation(row: Sequence[int], t: int) -> int:
    return ALL_FACTS[row[t - 1]]


def draw_induction(rng: RandomState, longest: int, rows: int) -> Rows:
    """A word of longest/2 to longest different letters, again and again; from its first letter's return on, what comes
    next is asked for."""
    length = max(24, 3 * longest)
    word = _orders(rng, rows, max(16, 2 * longest))[:, :longest]
    sizes = longest // 2 + _numbers(rng, longest - longest // 2 + 1, rows, 1)
    places = np.arange(length + 1)
    tokens = np.take_along_axis(word, places % sizes, axis=1)
    return tokens[:, :-1], np.where(places[:-1] >= sizes, tokens[:, 1:], IGNORE)


def solve_induction(row: Sequence[int], t: int) -> int:
    return row[list(row[:t]).index(row[t]) + 1]


# ---------------------------------------------------------------- state tracking: parity, swapped cups


def draw_parity(rng: RandomState, length: int, rows: int) -> Rows:
    """Random bits; at each, whether an odd number of ones has been read."""
    x = _numbers(rng, 2, rows, length)
    return x, x.cumsum(axis=1) % 2


def solve_parity(row: Sequence[int], t: int) -> int:
    return sum(row[: t + 1]) % 2


CUPS = 5
SWAPS = tuple(combinations(range(CUPS), 2))  # a token each, behind the cups' own


def draw_cups(rng: RandomState, length: int, rows: int) -> Rows:
    """Random swaps of two cups; after each, under which cup the ball is that lay under cup 0."""
    swaps = _numbers(rng, len(SWAPS), rows, length)
    ball, y = np.zeros(rows, np.int64), np.empty_like(swaps)
    for t in range(length):
        one, other = np.array(SWAPS)[swaps[:, t]].T
        ball = np.where(ball == one, other, np.where(ball == other, one, ball))
        y[:, t] = ball
    return CUPS + swaps, y


def solve_cups(row: Sequence[int], t: int) -> int:
    cups = ["ball"] + [""] * (CUPS - 1)
    for token in row[: t + 1]:
        one, other = SWAPS[token - CUPS]
        cups[one], cups[other] = cups[other], cups[one]
    return cups.index("ball")


# ---------------------------------------------------------------- all of them

TASKS = {
    "recall": Task(
        "in-context recall", "key-value pairs; where a key comes again, its value", "keys", (2, 4, 8, 16), (32,),
        draw_recall, solve_recall, lambda level: 2 * VALUE_FROM,
        "rows of 32 and 64 tokens, not 128; keys never share a value; only answers are trained on",
    ),
    "fuzzy": Task(
        "fuzzy recall", "the same with keys and values of several tokens", "tokens at most in a motif", (1, 2, 3), (4,),
        draw_fuzzy, solve_fuzzy, lambda level: 2 * SYMBOLS,
        "rows of 40 tokens, not 128; 4 keys in a row; short keys when tested, too; only answers are trained on",
    ),
    "noisy": Task(
        "noisy recall", "the same with noise between the pairs", "% of noise", (20, 40, 60), (80,),
        draw_noisy, solve_recall, lambda level: 4 * SYMBOLS,
        "rows of 40 tokens, not 128; 4 keys in a row, never sharing a value; only answers are trained on",
    ),
    "copying": Task(
        "selective copying", "repeat the letters among the blanks, in order", "letters", (2, 4, 8), (16,),
        draw_copying, solve_copying, lambda level: 16,
        "rows of 32 tokens (64 for 16 letters), not 256",
    ),
    "compression": Task(
        "compression", "all letters from the last position's vector", "letters", (4, 8, 16), (32,),
        draw_compression, solve_compression, lambda level: 16,
        "learned positions in the decoder, not sines", whole=True,
    ),
    "memorisation": Task(
        "memorisation", "facts that stand nowhere but in the training rows", "facts", FACTS[:3], FACTS[3:],
        draw_memorisation, solve_memorisation, lambda level: 1 + 2 * sum(n for n in FACTS if n <= level),
        "sets of 16 to 1,024 facts, not 127 to 4,095; fresh rows, not 256 of them",
    ),
    "induction": Task(
        "induction", "a word again and again: what comes next", "letters at most", (4, 8, 16), (32,),
        draw_induction, solve_induction, lambda level: max(32, 2 * level),
    ),
    "parity": Task(
        "parity", "an odd number of ones so far?", "bits", (8, 16, 32), (64,),
        draw_parity, solve_parity, lambda level: 2, beyond=True, late=True,
    ),
    "cups": Task(
        "swapped cups", "five cups, two change places at a time: where is the ball?", "swaps", (4, 8, 16), (32,),
        draw_cups, solve_cups, lambda level: CUPS + len(SWAPS), beyond=True, late=True,
    ),
}  # fmt: skip


# ---------------------------------------------------------------- guessing


def chance(task: Task, x: np.ndarray, y: np.ndarray) -> float:
    """The accuracy of the best rule that does not do the task, on these rows: (rows, T) each.

    The rules: always the commonest answer; the token just read; the answer token that stood most often in the row so
    far, the later of equals; any of those that stood there, at random.
    """
    answers = set(np.unique(y[y != IGNORE]).tolist())
    total, right = 0, Counter()
    for row, wanted in zip(x.tolist(), y.tolist()):
        seen: Counter = Counter()
        for t, answer in enumerate(wanted):
            if row[t] in answers:
                seen[row[t]] = seen.pop(row[t], 0) + 1  # moved to the end, so that the latest of equals is found last
            if answer == IGNORE:
                continue
            total += 1
            counts = Counter(token for token in row if token in answers) if task.whole else seen
            right["just read"] += 0 if task.whole else row[t] == answer
            right["most often"] += bool(counts) and max(reversed(counts), key=counts.__getitem__) == answer
            right["any seen"] += 1 / len(counts) if answer in counts else 0
    right["commonest"] = max(Counter(y[y != IGNORE].tolist()).values())
    return max(right.values()) / total
