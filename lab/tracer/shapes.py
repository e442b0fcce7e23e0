"""Shapes as people write them, `(B, T, H*K)` in a comment or `B T H*K` in a signature, held against shapes seen.

A dimension that was seen is a vector here: its size in the recorded run and in each probe, None where a probe did not
get that far. So is each letter of the key. Other letters are free: the first dimension they meet decides.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from lab.tracer.record import Scope
from lab.tracer.sizes import INPUTS, LETTERS, Namer, field_of
from lab.tracer.values import Value, numbers, shape_text

Vector = tuple["int | None", ...]
Sizes = dict[str, Vector]  # of letters


@dataclass(frozen=True)
class Dim:
    """One dimension as written. `tree` is its formula; None for `...`, which stands for any dimensions."""

    text: str
    tree: ast.expr | None
    names: frozenset[str] = frozenset()


_PARTS = (ast.BinOp, ast.Name, ast.Constant, ast.operator, ast.Load)


def parse_dim(text: str) -> Dim | None:
    """`T`, `H*K`, `K/2`, `2F`, `T+1`, `4`, `...`; None for anything else."""
    text = text.strip()
    if text in ("...", "…"):
        return Dim(text, None)
    formula = re.sub(r"(?<![\w.])(\d+)(?=[A-Za-z])", r"\1*", text.replace("·", "*").replace("×", "*"))
    try:
        tree = ast.parse(formula, mode="eval").body
    except (SyntaxError, ValueError):
        return None
    nodes = list(ast.walk(tree))
    plain = all(isinstance(node, _PARTS) and not isinstance(node, ast.Pow | ast.MatMult) for node in nodes)
    whole = all(type(node.value) is int for node in nodes if isinstance(node, ast.Constant))
    if not (plain and whole):
        return None
    return Dim(text, tree, frozenset(node.id for node in nodes if isinstance(node, ast.Name)))


def fit(
    dims: Sequence[Dim], seen: Sequence[Vector], letters: Sizes, bound: Sizes, literal_runs: int = 1
) -> Sizes | None:
    """The free letters bound so far with those that these sizes bind; None where shape and sizes disagree.

    `literal_runs`: in how many runs, from the recorded one on, a dimension without letters is looked at.
    """
    pairs = _pair(dims, seen)
    if pairs is None:
        return None
    bound = dict(bound)
    for dim, sizes in sorted(pairs, key=lambda pair: not isinstance(pair[0].tree, ast.Name)):  # plain letters first
        free = sorted(name for name in dim.names if name not in letters and name not in bound)
        if len(free) > 1:
            continue
        if free:
            solved = tuple(_solve(dim, free[0], size, _at(i, letters, bound)) for i, size in enumerate(sizes))
            if "no" in solved:
                return None
            bound[free[0]] = solved
            continue
        runs = range(len(sizes) if dim.names else literal_runs)
        if not all(_agree(dim, sizes[i], _at(i, letters, bound)) for i in runs):
            return None
    return bound


def _pair(dims: Sequence[Dim], seen: Sequence[Vector]) -> list[tuple[Dim, Vector]] | None:
    gap = next((i for i, dim in enumerate(dims) if dim.tree is None), None)
    if gap is None:
        return list(zip(dims, seen)) if len(dims) == len(seen) else None
    behind = len(dims) - gap - 1
    if len(seen) < gap + behind:
        return None
    return list(zip(dims[:gap], seen)) + list(zip(dims[gap + 1 :], seen[len(seen) - behind :]))


def _at(run: int, *tables: Sizes) -> dict[str, int | None]:
    return {name: sizes[run] for table in tables for name, sizes in table.items() if run < len(sizes)}


def _agree(dim: Dim, size: int | None, values: Mapping[str, int | None]) -> bool:
    if size is None or any(values.get(name) is None for name in dim.names):
        return True
    try:
        return _evaluate(dim.tree, values) == size
    except ZeroDivisionError:
        return False


def _solve(dim: Dim, name: str, size: int | None, values: Mapping[str, int | None]) -> int | str | None:
    """The value of the one unknown of a formula that makes it `size`; None where that can't be said, "no" if none."""
    if size is None or any(values.get(other) is None for other in dim.names - {name}):
        return None
    try:
        zero = _evaluate(dim.tree, {**values, name: 0})
        slope = _evaluate(dim.tree, {**values, name: 1}) - zero
        value = (size - zero) / slope
        return int(value) if value.denominator == 1 and value >= 0 else "no"
    except ZeroDivisionError:  # the unknown is divided by, or cancels out
        return None


def _evaluate(tree: ast.expr, values: Mapping[str, int | None]) -> Fraction:
    if isinstance(tree, ast.Constant):
        return Fraction(tree.value)
    if isinstance(tree, ast.Name):
        return Fraction(values[tree.id])
    left, right = _evaluate(tree.left, values), _evaluate(tree.right, values)
    if isinstance(tree.op, ast.Add):
        return left + right
    if isinstance(tree.op, ast.Sub):
        return left - right
    if isinstance(tree.op, ast.Mult):
        return left * right
    return Fraction(left // right) if isinstance(tree.op, ast.FloorDiv) else left / right


# --------------------------------------------------------------------------------------------------------------------
# What a trace knows


class Seen:
    """The sizes that a trace saw: of tensors and of the letters, call by call."""

    def __init__(self, trace):
        self.trace = trace
        self._home: dict[int, int] = {}  # index of a value -> the call whose runs it was compared in, the first
        self._call: dict[int, int] = {}  # id of a scope -> its outermost call
        for index, call in enumerate(trace.calls):
            for item in call.walk():
                if isinstance(item, Scope):
                    self._call[id(item)] = index
                for value in values_of(item):
                    self._home.setdefault(value.index, index)

    def letters(self, scope: Scope, same_config: bool = False) -> Sizes:
        """The key's letters, and the config's own names for them, in each run of the call around a scope.

        same_config: only in the runs of the model itself, not in those of one that was made anew in other sizes.
        """
        namer = self._namer(scope)
        fields = {field_of(self.trace.names, letter): letter for letter in LETTERS} if self.trace.names else {}
        named = {name: namer.vectors[letter] for name, letter in fields.items() if name and letter in namer.vectors}
        kept = self._runs(namer, same_config)
        return {name: tuple(vector[i] for i in kept) for name, vector in (named | namer.vectors).items()}

    def sizes(self, value: Value, scope: Scope, same_config: bool = False) -> list[Vector]:
        """Of each dimension, its size in each run; in the recorded run alone where a tensor is older than the call."""
        if not value.runs or self._home.get(value.index) != self._call[id(scope)]:
            return [(size,) for size in value.shape]
        return [tuple(sizes[i] for i in self._runs(self._namer(scope), same_config)) for sizes in value.runs]

    def _namer(self, scope: Scope) -> Namer:
        return self.trace.namers[self._call[id(scope)]]

    @staticmethod
    def _runs(namer: Namer, same_config: bool) -> list[int]:
        own = [{name: size for name, size in run.items() if name not in INPUTS} for run in namer.runs]
        return [i for i in range(len(own)) if own[i] == own[0] or not same_config]


def values_of(item) -> list[Value]:
    """All tensors in sight of an operation or call."""
    from lab.tracer.values import tensors_in

    if isinstance(item, Scope):
        return [*(v for a in item.arguments for v in tensors_in(a.info)), *tensors_in(item.output)]
    return item.inputs() + item.outputs()


def seen_text(value: Value) -> str:
    """`(B,T,D) = (2,16,64)`, or the numbers alone where there are no names."""
    return f"{shape_text(value)} = {numbers(value)}" if value.symbols and value.shape else shape_text(value)
