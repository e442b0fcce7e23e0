"""Names for dimensions: which formula in B, T, D, H, ... explains a size in every run that was made.

A size seen once proves nothing: 16 may be T or K. Runs with other sizes tell them apart, so each dimension comes here
as a vector, one entry a run, and so does each letter. A formula fits if it gives that vector; of those that fit the
simplest is shown, and several that are equally simple are shown as such (`H|K`), never chosen between.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

LETTERS = {  # letter -> the field names under which configs hold that size
    "D": ("dim", "d_model", "hidden_size", "n_embd", "embed_dim", "model_dim"),
    "H": ("num_q_heads", "num_heads", "n_head", "n_heads", "num_attention_heads"),
    "G": ("num_kv_heads", "n_kv_heads", "num_key_value_heads", "n_kv_head"),
    "K": ("head_dim", "d_head"),
    "F": ("mlp_hidden", "intermediate_size", "hidden_dim", "d_ff", "n_inner"),
    "V": ("vocab_size", "n_vocab"),
    "E": ("num_experts", "n_experts", "num_local_experts"),
    "N": ("state_size", "d_state"),
    "Tmax": ("max_seq_len", "block_size", "n_positions", "max_position_embeddings", "n_ctx"),
}
ORDER = "B T S D H G K F V E N Tmax".split()


def sizes_of(names: Any) -> dict[str, int]:
    """Letters and sizes from a dict of them or from a config's fields. Raises ValueError where there are none."""
    if isinstance(names, dict):
        wrong = [name for name, size in names.items() if not isinstance(size, int) or isinstance(size, bool)]
        if wrong:
            raise ValueError(f"names[{wrong[0]!r}]={names[wrong[0]]!r}: a size must be an int, such as {{'D': 64}}")
        return dict(names)
    fields = {letter: field_of(names, letter) for letter in LETTERS}
    sizes = {letter: int(getattr(names, name)) for letter, name in fields.items() if name is not None}
    if not sizes:
        raise ValueError(f"names={names!r}: give a config with fields such as dim, or a dict such as {{'D': 64}}")
    return sizes


def field_of(config: Any, letter: str) -> str | None:
    """The field under which a config holds the size of a letter."""
    for name in LETTERS[letter]:
        value = getattr(config, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return name
    return None


class Namer:
    """Finds formulas. `runs` holds the sizes of the letters in each run, the first being the one to be named."""

    def __init__(self, runs: list[dict[str, int]]):
        self.runs = runs
        names = sorted(runs[0], key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))
        self.vectors = {name: tuple(run.get(name, runs[0][name]) for run in runs) for name in names}
        self._cache: dict[tuple, str] = {}

    def name(self, vector: tuple[int | None, ...]) -> str:
        """The formula for a size; None where a run did not get that far. Its number where no formula fits."""
        if vector not in self._cache:
            self._cache[vector] = "|".join(self.fits(vector)) or str(vector[0])
        return self._cache[vector]

    def fits(self, vector: tuple[int | None, ...]) -> list[str]:
        """All formulas of the lowest complexity that fit; at most three are listed."""
        known = [i for i, size in enumerate(vector) if size is not None]
        sizes = tuple(vector[i] for i in known)
        letters = {name: tuple(v[i] for i in known) for name, v in self.vectors.items()}
        constant = len(set(sizes)) == 1
        if constant and sizes[0] < 2:
            return [str(sizes[0])]
        if constant:
            settled = any(len(set(v)) > 1 for name, v in letters.items() if name not in ("B", "T", "S"))
            # The same in every run though all else changed: a literal stays a literal.
            searches = [_letters] if settled else [_letters, _likely]
        else:
            searches = [_letters, _pairs, _triples]
        for formulas in searches:
            found = list(dict.fromkeys(text for text, value in formulas(letters, sizes) if value == sizes))
            if found:
                return found[:3]
        return []

    def legend(self) -> str:
        """`B=2 T=16 D=64`"""
        return " ".join(f"{name}={vector[0]}" for name, vector in self.vectors.items())


Vectors = dict[str, tuple[int, ...]]
Formulas = Iterator[tuple[str, tuple]]


def _letters(letters: Vectors, sizes: tuple) -> Formulas:
    yield from letters.items()


def _likely(letters: Vectors, sizes: tuple) -> Formulas:
    """What is named on the evidence of unchanged sizes alone: H·K, G·K, B·T, K/2, 2·F."""
    for a, b in (("H", "K"), ("G", "K"), ("B", "T")):
        if a in letters and b in letters:
            yield f"{a}·{b}", _map(lambda p, q: p * q, letters[a], letters[b])
    if "K" in letters:
        yield "K/2", tuple(p / 2 for p in letters["K"])
    if "F" in letters:
        yield "2·F", tuple(2 * p for p in letters["F"])


def _pairs(letters: Vectors, sizes: tuple) -> Formulas:
    """X·Y, X/Y, n·X, X/n, X+n, X-n."""
    for (a, x), (b, y) in itertools.combinations(letters.items(), 2):
        yield f"{a}·{b}", _map(lambda p, q: p * q, x, y)
    for (a, x), (b, y) in itertools.permutations(letters.items(), 2):
        if all(q and p % q == 0 for p, q in zip(x, y, strict=True)):
            yield f"{a}/{b}", _map(lambda p, q: p // q, x, y)
    for a, x in letters.items():
        if len(set(x)) > 1:
            for n in (2, 3, 4, 6, 8):
                yield f"{n}·{a}", tuple(n * p for p in x)
                yield f"{a}/{n}", tuple(p / n for p in x)
            offset = sizes[0] - x[0]
            yield f"{a}{offset:+d}", tuple(p + offset for p in x)


def _triples(letters: Vectors, sizes: tuple) -> Formulas:
    """X·Y·Z, X·Y/Z, 2·X·Y, X·Y/2, X·X, X+Y, X·Y+1, 2·X+n. From two runs alone too many of them would fit."""
    if len(sizes) < 3:
        return
    for (a, x), (b, y) in itertools.combinations_with_replacement(letters.items(), 2):
        product = _map(lambda p, q: p * q, x, y)
        yield f"{a}·{b}", product
        yield f"{a}+{b}", _map(lambda p, q: p + q, x, y)
        yield f"2·{a}·{b}", tuple(2 * p for p in product)
        yield f"{a}·{b}/2", tuple(p / 2 for p in product)
        offset = sizes[0] - product[0]
        if offset:
            yield f"{a}·{b}{offset:+d}", tuple(p + offset for p in product)
        for c, z in letters.items():
            yield f"{a}·{b}·{c}", _map(lambda p, q: p * q, product, z)
            if c not in (a, b) and all(z):
                yield f"{a}·{b}/{c}", _map(lambda p, q: p / q, product, z)
    for a, x in letters.items():
        offset = sizes[0] - 2 * x[0]
        yield f"2·{a}{offset:+d}", tuple(2 * p + offset for p in x)


def _map(function, x: Iterable[int], y: Iterable[int]) -> tuple[int, ...]:
    return tuple(function(p, q) for p, q in zip(x, y, strict=True))


# --------------------------------------------------------------------------------------------------------------------
# Other sizes to try


def other_sizes(sizes: dict[str, int], tied: frozenset[str]) -> dict[str, int]:
    """Sizes that differ from `sizes`, and from one another in as many formulas as can be, yet build the same model.

    tied: relations to keep, of "D=HK" (heads fill the width exactly) and "H=G" (as many key/value heads as queries).
    """
    H, G, K, D = (sizes.get(name, 1) for name in "HGKD")
    group = 1 if "H=G" in tied else max(2, H // max(G, 1)) + 1
    taken = set(sizes.values())
    g = _free(G + 1, taken, 1)
    h = g * group
    taken |= {g, h, 2 * h, 2 * g}
    k = _free(K + 2 + K % 2, taken, 2)
    taken |= {k, k // 2, h * k, g * k}
    d = h * k if "D=HK" in tied else _free(D + 2 + D % 2, taken, 2)
    taken |= {d, d // 2}
    other = {"H": h, "G": g, "K": k, "D": d}
    for name in sizes:
        if name not in other:
            other[name] = _free(sizes[name] + 2 + sizes[name] % 2, taken, 2)
            taken.add(other[name])
    return {name: other[name] for name in sizes}


def _free(start: int, taken: set[int], step: int) -> int:
    while start in taken:
        start += step
    return start


def with_sizes(config: Any, sizes: dict[str, int]) -> Any:
    """A copy of a config with other sizes. Raises what the config raises where it refuses them."""
    fields = {field_of(config, letter): size for letter, size in sizes.items() if letter in LETTERS}
    fields = {name: size for name, size in fields.items() if name is not None}
    if dataclasses.is_dataclass(config):
        return dataclasses.replace(config, **fields)
    import copy

    other = copy.copy(config)
    for name, size in fields.items():
        setattr(other, name, size)
    return other
