"""Names for dimensions: which formula in B, T, D, H, ... explains a size in every run that was made.

A size seen once proves nothing: 16 may be T or K. Runs with other sizes tell them apart, so each dimension comes here
as a vector, one entry a run, and so does each letter. A formula fits if it gives that vector; of those that fit the
simplest is shown, and several that are equally simple are shown as such (`H|K`), never chosen between.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

LETTERS = {  # letter -> the field names under which configs hold that size
    "D": ("dim", "d_model", "hidden_size", "n_embd", "embed_dim", "model_dim"),
    "H": ("num_q_heads", "num_heads", "n_head", "n_heads", "num_attention_heads", "nhead", "heads"),
    "G": ("num_kv_heads", "n_kv_heads", "num_key_value_heads", "n_kv_head"),
    "K": ("head_dim", "d_head"),
    "R": ("rope_dim", "rotary_dim"),
    "F": ("mlp_hidden", "intermediate_size", "hidden_dim", "d_ff", "n_inner", "dim_feedforward", "ffn_dim", "mlp_dim"),
    "V": ("vocab_size", "n_vocab"),
    "E": ("num_experts", "n_experts", "num_local_experts"),
    "N": ("state_size", "d_state"),
    "Tmax": ("max_seq_len", "block_size", "n_positions", "max_position_embeddings", "n_ctx"),
}
ORDER = "B T S D H G K R F V E N Tmax".split()
INPUTS = ("T", "B", "S")  # letters that the inputs set, each changed by a run of its own; the config sets the others
LIKELY = (("H", "K"), ("G", "K"), ("B", "T"))  # products that occur in every model
SMALL = 4  # up to here a number in the code is as likely as a letter that happens to have that size


def sizes_of(names: Any) -> dict[str, int]:
    """Letters and sizes from a dict of them or from a config's fields. Raises ValueError where there are none.

    A config may itself be a dict, `{"dim": 64, "n_heads": 8}`: it is one if a key is the name of a known field.
    """
    fields = {letter: field_of(names, letter) for letter in LETTERS}
    sizes = {letter: int(_get(names, name)) for letter, name in fields.items() if name is not None}
    if sizes or (isinstance(names, dict) and not names):
        return sizes
    if not isinstance(names, dict):
        raise ValueError(f"names={names!r}: give a config with fields such as dim, or a dict such as {{'D': 64}}")
    for name, size in names.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise ValueError(f"names[{name!r}]={size!r}: a size must be an int, such as {{'D': 64}}")
    return dict(names)


def field_of(config: Any, letter: str) -> str | None:
    """The field under which a config holds the size of a letter."""
    for name in LETTERS[letter]:
        value = _get(config, name)
        if isinstance(value, int) and not isinstance(value, bool):
            return name
    return None


def _get(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else getattr(config, name, None)


# --------------------------------------------------------------------------------------------------------------------
# Finding formulas

Vector = tuple[int, ...]
Formulas = Iterator[str]


class Namer:
    """Finds formulas. `runs` holds the sizes of the letters in each run, the first being the one to be named."""

    def __init__(self, runs: list[dict[str, int]]):
        self.runs = runs
        names = sorted(runs[0], key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
        self.vectors: dict[str, Vector] = {name: tuple(run.get(name, runs[0][name]) for run in runs) for name in names}
        self._found: dict[tuple, list[str]] = {}
        self._tables: dict[tuple, _Table] = {}

    def name(self, vector: tuple[int | None, ...]) -> str:
        """The formula for a size; None where a run did not get that far. Its number where no formula fits."""
        return "|".join(self.fits(vector)) or str(vector[0])

    def fits(self, vector: tuple[int | None, ...]) -> list[str]:
        """All formulas of the lowest complexity that fit; at most three are listed."""
        if vector not in self._found:
            known = tuple(i for i, size in enumerate(vector) if size is not None)
            if known not in self._tables:
                self._tables[known] = _Table({name: tuple(v[i] for i in known) for name, v in self.vectors.items()})
            self._found[vector] = self._tables[known].fits(tuple(vector[i] for i in known))[:3]
        return self._found[vector]

    def leave_unnamed(self, vector: tuple[int | None, ...]) -> None:
        """Says that a size depends on the data: a formula that fits it fits by chance. Letters keep their names."""
        if not any(text in self.vectors for text in self.fits(vector)):
            self._found[vector] = []

    def is_sure(self, vector: tuple[int | None, ...]) -> bool:
        """Whether the formula rests on more than one run for each letter in it: no choice, nothing intricate."""
        found = self.fits(vector)
        return len(found) <= 1 and not any(sum(text.count(sign) for sign in "·/+-⌊⌈") > 1 for text in found)

    def guesses(self, size: int) -> list[str]:
        """All that a size may be, going by the first run alone: letters, then likely formulas."""
        table = _Table({name: vector[:1] for name, vector in self.vectors.items()})
        return [*table._letters((size,)), *(text for text, likely in table.likely() if likely == (size,))]

    def legend(self) -> str:
        """`B=2 T=16 D=64`"""
        return " ".join(f"{name}={vector[0]}" for name, vector in self.vectors.items())


class _Table:
    """The formulas that a set of runs allows. From simple to intricate: X; X·Y, 2·X, X+1; X·Y/Z, 128·X/Y."""

    def __init__(self, letters: dict[str, Vector]):
        self.letters = letters
        self.moving = {name: x for name, x in letters.items() if len(set(x)) > 1}

    def fits(self, sizes: Vector) -> list[str]:
        if len(set(sizes)) == 1:
            return self._constant(sizes)
        levels = [self._letters, self._simple]
        if len(sizes) > 2:  # from two runs alone too many intricate formulas would fit
            levels.append(self._intricate)
        for level in levels:
            found = list(dict.fromkeys(level(sizes)))
            if found:
                return found
        return []

    def _letters(self, sizes: Vector) -> Formulas:
        return (name for name, x in self.letters.items() if x == sizes)

    def _constant(self, sizes: Vector) -> list[str]:
        """A size that was the same in every run: a letter that did not change, or a number in the code."""
        if sizes[0] < 2:
            return [str(sizes[0])]
        found = list(self._letters(sizes))
        if not any(name not in INPUTS for name in self.moving):  # else: the same though all that changed, a number
            found += [text for text, likely in self.likely() if likely == sizes]
        return found + [str(sizes[0])] * (bool(found) and sizes[0] <= SMALL)

    def likely(self) -> Iterator[tuple[str, Vector]]:
        """What is named on the evidence of unchanged sizes alone."""
        for a, b in LIKELY:
            if a in self.letters and b in self.letters:
                yield f"{a}·{b}", _map(lambda p, q: p * q, self.letters[a], self.letters[b])
        for rotated in ("R", "K"):  # pairs of channels
            if rotated in self.letters:
                yield f"{rotated}/2", tuple(p / 2 for p in self.letters[rotated])
        if "F" in self.letters:
            yield "2·F", tuple(2 * p for p in self.letters["F"])

    # ---- X·Y, X/Y, n·X, X/n, X+n

    @cached_property
    def pairs(self) -> dict[str, Vector]:
        """X·Y and X/Y, and K-R. Of letters that never changed only the likely ones: there are too many."""
        found = {}
        for (a, x), (b, y) in itertools.combinations_with_replacement(self.letters.items(), 2):
            if a in self.moving or b in self.moving or (a, b) in LIKELY:
                found[f"{a}·{b}"] = _map(lambda p, q: p * q, x, y)
        for (a, x), (b, y) in itertools.permutations(self.letters.items(), 2):
            if (a in self.moving or b in self.moving) and all(q and p % q == 0 for p, q in zip(x, y)):
                found[f"{a}/{b}"] = _map(lambda p, q: p // q, x, y)
        if {"K", "R"} <= self.letters.keys():  # the channels of a head that partial RoPE leaves alone
            found["K-R"] = _map(lambda p, q: p - q, self.letters["K"], self.letters["R"])
        return found

    @cached_property
    def _pairs_by_size(self) -> dict[Vector, list[str]]:
        return _inverted(self.pairs)

    def _simple(self, sizes: Vector) -> Formulas:
        yield from self._pairs_by_size.get(sizes, [])
        for name, x in self.moving.items():
            yield from self._with_number(name, x, sizes)
            if name in INPUTS:  # those of the config are chosen so that what is divided comes out even
                yield from _rounded(name, x, sizes)

    def _with_number(self, text: str, x: Vector, sizes: Vector) -> Formulas:
        """n·X, X/n, X+n for any number n."""
        if x == sizes or len(set(x)) == 1:
            return
        n = _quotient(sizes, x)
        if n is not None:
            yield f"{n}·{text}"
        n = _quotient(x, sizes)
        if n is not None:
            yield f"{text}/{n}"
        if self._may_shift(text, sizes[0] - x[0]) and len({size - p for size, p in zip(sizes, x)}) == 1:
            yield f"{text}{sizes[0] - x[0]:+d}"

    def _may_shift(self, text: str, n: int) -> bool:
        """Whether X+n is likely. Letters of the config all change in one run, so that some X+n often fits by chance."""
        return abs(n) <= 2 or any(name in INPUTS for name in text.replace("/", "·").split("·"))

    # ---- X·Y·Z, X·Y/Z, X+Y, n·X·Y, n·X/Y, X·Y+n, n·X+m, X·(Y+n), X/Y·(Z+n)

    @cached_property
    def _intricate_by_size(self) -> dict[Vector, list[str]]:
        found: dict[str, Vector] = {}
        for (a, x), (b, y) in itertools.combinations_with_replacement(self.letters.items(), 2):
            if a != b:
                found[f"{a}+{b}"] = _map(lambda p, q: p + q, x, y)
            product = _map(lambda p, q: p * q, x, y)
            for c, z in self.moving.items():
                if c not in (a, b) and all(q and p % q == 0 for p, q in zip(product, z)):
                    found[f"{a}·{b}/{c}"] = _map(lambda p, q: p // q, product, z)
        for count in (3, 4):
            for names in itertools.combinations(self.letters, count):
                found["·".join(names)] = tuple(_product(run) for run in zip(*(self.letters[n] for n in names)))
        return _inverted(found)

    def _intricate(self, sizes: Vector) -> Formulas:
        yield from self._intricate_by_size.get(sizes, [])
        for text, x in self.pairs.items():
            yield from self._with_number(text, x, sizes)
        for name, x in self.moving.items():
            yield from self._line(name, x, sizes)
        for text, x in (self.letters | self.pairs).items():
            yield from self._times_shifted(text, x, sizes)

    def _line(self, name: str, x: Vector, sizes: Vector) -> Formulas:
        """n·X+m, and n·(X+m) where that is a whole number."""
        other = next(i for i, p in enumerate(x) if p != x[0])
        n = (sizes[other] - sizes[0]) // (x[other] - x[0])
        m = sizes[0] - n * x[0]
        if n < 2 or not m or any(size != n * p + m for size, p in zip(sizes, x)):
            return
        if m % n == 0 and self._may_shift(name, m // n):
            yield f"{n}·({name}{m // n:+d})"
        elif self._may_shift(name, m):
            yield f"{n}·{name}{m:+d}"

    def _times_shifted(self, text: str, x: Vector, sizes: Vector) -> Formulas:
        """X·(Y+n), X/Y·(Z+n)"""
        if not all(p and size % p == 0 for size, p in zip(sizes, x)):
            return
        rest = _map(lambda size, p: size // p, sizes, x)
        for name, y in self.moving.items():
            n = rest[0] - y[0]
            if n and self._may_shift(name, n) and all(size - p == n for size, p in zip(rest, y)):
                yield f"{text}·({name}{n:+d})"


def _rounded(name: str, x: Vector, sizes: Vector) -> Formulas:
    """X/n rounded down or up, where it is no whole number."""
    for n in range(2, 9):
        if any(p % n for p in x):
            if all(p // n == size for p, size in zip(x, sizes)):
                yield f"⌊{name}/{n}⌋"
            if all(-(-p // n) == size for p, size in zip(x, sizes)):
                yield f"⌈{name}/{n}⌉"


def _quotient(x: Vector, y: Vector) -> int | None:
    """The number n > 1 with x = n·y in every run."""
    if not y[0] or x[0] % y[0]:
        return None
    n = x[0] // y[0]
    return n if n > 1 and all(p == n * q for p, q in zip(x, y)) else None


def _map(function: Callable[[int, int], int], x: Vector, y: Vector) -> Vector:
    return tuple(function(p, q) for p, q in zip(x, y))


def _product(numbers: tuple[int, ...]) -> int:
    product = 1
    for number in numbers:
        product *= number
    return product


def _inverted(formulas: dict[str, Vector]) -> dict[Vector, list[str]]:
    found: dict[Vector, list[str]] = {}
    for text, vector in formulas.items():
        found.setdefault(vector, []).append(text)
    return found


# --------------------------------------------------------------------------------------------------------------------
# Other sizes to try


def other_sizes(sizes: dict[str, int], tied: frozenset[str], attempt: int = 0) -> dict[str, int]:
    """Sizes that differ from `sizes`, and from one another in as many formulas as can be, yet build the same model.

    tied: relations to keep, of "D=HK" (heads fill the width exactly), "H|D" (the width is a multiple of the heads) and
    "H=G" (as many key/value heads as query heads).
    attempt: another number gives other sizes.
    """
    H, G, K, D = (sizes.get(name, 1) for name in "HGKD")
    taken = _Taken(sizes)
    group = 1 if "H=G" in tied else max(2, H // max(G, 1)) + 1 + attempt
    taken.growths.add(group - H // max(G, 1))
    g = taken.free("G", G + 1 + attempt, 1)
    h = taken.note("H", g * group)
    other = {"H": h, "G": g}
    if "R" in sizes:  # a part of the head's width, and even
        other["R"] = taken.free("R", sizes["R"] + 2 + 2 * attempt, 2)
    k = other["K"] = taken.free("K", max(K + 2 + K % 2 + 2 * attempt, other.get("R", 0) + 2), 2)
    taken.values |= {h * k, g * k, k // 2}
    if "D=HK" in tied:
        other["D"] = taken.note("D", h * k)
    elif "H|D" in tied:
        other["D"] = taken.free("D", h * (k + 2 + 2 * attempt), 2 * h)
    else:
        other["D"] = taken.free("D", D + 2 + D % 2 + 2 * attempt, 2)
    for name, size in sizes.items():
        if name not in other:
            other[name] = taken.free(name, size + 2 + size % 2 + 2 * attempt, 2)
    return {name: other[name] for name in sizes}


class _Taken:
    """Sizes in use, and by how much letters have grown: two that grew alike could not be told apart in X+n."""

    def __init__(self, sizes: dict[str, int]):
        self.sizes = sizes
        self.values = set(sizes.values())
        self.growths: set[int] = set()

    def free(self, name: str, start: int, step: int) -> int:
        """The first size from `start` on, going by `step`, that nothing else has."""
        while start in self.values or start - self.sizes.get(name, 1) in self.growths:
            start += step
        return self.note(name, start)

    def note(self, name: str, size: int) -> int:
        self.values |= {size, 2 * size, size // 2}
        self.growths.add(size - self.sizes.get(name, 1))
        return size


def with_sizes(config: Any, sizes: dict[str, int]) -> Any:
    """A copy of a config with other sizes. Raises what the config raises where it refuses them."""
    fields = {field_of(config, letter): size for letter, size in sizes.items() if letter in LETTERS}
    fields = {name: size for name, size in fields.items() if name is not None}
    if isinstance(config, dict):
        return {**config, **fields} if fields else dict(sizes)
    if dataclasses.is_dataclass(config):
        return dataclasses.replace(config, **fields)
    if hasattr(config, "_replace"):  # a named tuple
        return config._replace(**fields)
    other = copy.copy(config)
    for name, size in fields.items():
        setattr(other, name, size)
    return other
