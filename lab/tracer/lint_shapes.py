"""Lints about shapes: sizes that are equal by coincidence alone, unintended broadcasting."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from lab.tracer.cost import COUNTED
from lab.tracer.lint_base import Item, Lint, in_own_code, lint_at
from lab.tracer.record import Op, Scope
from lab.tracer.sizes import INPUTS
from lab.tracer.source import expression_at, source_of
from lab.tracer.values import Value, numbers, shape_text, tensors_in

MAX_TEXT, MAX_MESSAGE, MAX_STEPS = 60, 90, 8
Pair = tuple[Value, int, Value, int]  # a tensor and a dimension of it, met by a dimension of another

ELEMENTWISE = {
    "__add__", "__radd__", "__iadd__", "add", "add_", "__sub__", "__rsub__", "__isub__", "sub", "sub_", "__mul__",
    "__rmul__", "__imul__", "mul", "mul_", "__truediv__", "__rtruediv__", "__itruediv__", "div", "div_", "__pow__",
    "pow", "maximum", "minimum", "where", "masked_fill", "masked_fill_", "__and__", "__or__", "logical_and",
    "logical_or", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "eq", "ne", "lt", "le", "gt", "ge",
    "addcmul", "lerp", "fmod", "remainder", "atan2", "logaddexp", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
}  # fmt: skip
_MATMULS = {"matmul", "__matmul__", "mm", "bmm", "mv", "dot"}

# --------------------------------------------------------------------------------------------------------------------
# Which dimensions meet


def multiplied(op: Op) -> list[Pair]:
    """The pairs of dimensions that must be equal in a matrix product, einsum or attention."""
    tensors = op.inputs()
    if op.name in _MATMULS and len(tensors) == 2:
        a, b = tensors
        return [(a, -1, b, -2 if len(b.shape) > 1 else -1)] if a.shape and b.shape else []
    if op.name == "__rmatmul__" and len(tensors) == 2:
        b, a = tensors
        return [(a, -1, b, -2 if len(b.shape) > 1 else -1)]
    if op.name == "linear" and len(tensors) >= 2:
        return [(tensors[0], -1, tensors[1], -1)]
    if op.name == "scaled_dot_product_attention" and len(tensors) >= 3:
        query, key, value = tensors[:3]
        return [(query, -1, key, -1), (key, -2, value, -2)]
    if op.name == "einsum" and op.args and isinstance(op.args[0], str):
        return _einsum_pairs(op.args[0].replace(" ", ""), tensors)
    return []


def _einsum_pairs(equation: str, tensors: list[Value]) -> list[Pair]:
    terms = equation.partition("->")[0].split(",")
    if "..." in equation or len(terms) != len(tensors):
        return []
    pairs, first = [], {}
    for term, value in zip(terms, tensors):
        for dim, letter in enumerate(term[: len(value.shape)]):
            if letter in first:
                pairs.append((*first[letter], value, dim))
            first.setdefault(letter, (value, dim))
    return pairs


def aligned(op: Op) -> list[Pair]:
    """The pairs of dimensions that meet in an elementwise operation, where both are longer than 1."""
    if op.name not in ELEMENTWISE:
        return []
    tensors = [value for value in op.inputs() if value.shape]
    pairs = []
    for i, a in enumerate(tensors):
        for b in tensors[i + 1 :]:
            dims = range(-1, -min(len(a.shape), len(b.shape)) - 1, -1)
            pairs += [(a, d, b, d) for d in dims if a.shape[d] > 1 and b.shape[d] > 1]
    return pairs


# --------------------------------------------------------------------------------------------------------------------
# Coincidences: what works with these sizes alone


def coincidences(trace) -> Iterator[Lint]:
    """Operations that failed in a probe because two dimensions were no longer equal, as in a forgotten transpose."""
    for index, probes in trace.probes.items():
        call, known = trace.calls[index], trace.namers[index].runs[0]
        for probe in probes:
            changed = {letter for letter in INPUTS if probe.letters.get(letter) != known.get(letter)}
            other_ran = any(other.complete and _changes(other, changed, known) for other in probes)
            op = probe.failed_at
            if call.failed or other_ran or not isinstance(op, Op) or not _is_shape_error(probe.error):
                continue  # the second: a length that must be even, say, and was not
            twins = _recorded(trace, probe)
            if all(_is_read_right(leaf, probe, twins, known) for value in op.inputs() for leaf in _leaves(value)):
                yield from _coincidence(trace.namers[index], probe, op, changed, twins)


def _changes(probe: Any, letters: set[str], known: dict[str, int]) -> bool:
    return bool(letters) and all(probe.letters.get(letter) != known.get(letter) for letter in letters)


_SHAPE_ERROR = re.compile(r"size|shape|match|multipl|dimension|broadcast|einsum|expand", re.IGNORECASE)


def _is_shape_error(error: Exception | None) -> bool:
    return isinstance(error, RuntimeError) and bool(_SHAPE_ERROR.search(str(error)))


def _recorded(trace, probe: Any) -> dict[int, Value]:
    """By index of a tensor in the probe, the one in its place in the recorded run."""
    found = {twin.index: trace.values[index] for index, twin in probe.twins.items()}
    weights = {value.origin: value for value in trace.values if value.weight}
    values = (v for item in probe.call.walk() if isinstance(item, Op) for v in item.inputs() if v.weight)
    return found | {value.index: weights[value.origin] for value in values if value.origin in weights}


def _is_read_right(leaf: Value, probe: Any, twins: dict[int, Value], known: dict[str, int]) -> bool:
    """Whether an input got the sizes it should have: a 16 in a second input may mean T or K, and that is a guess."""
    given = (value for argument in probe.call.arguments for value in tensors_in(argument.info))
    if leaf.weight or leaf is next(given, None):
        return True
    twin = twins.get(leaf.index)
    changed = {known.get(letter) for letter, size in probe.letters.items() if known.get(letter) != size}
    return twin is not None and bool(twin.shape) and not changed & set(twin.shape)


def _leaves(value: Value) -> list[Value]:
    """The tensors that no recorded operation made, from which a tensor was computed."""
    found, open_, seen = [], [value], set()
    while open_:
        value = open_.pop()
        if value.index in seen:
            continue
        seen.add(value.index)
        if value.maker is None:
            found.append(value)
        else:
            open_ += value.maker.inputs()
    return found


def _coincidence(namer, probe: Any, op: Op, changed: set[str], twins: dict[int, Value]) -> Iterator[Lint]:
    item = in_own_code(op)
    for a, i, b, j in multiplied(op) + aligned(op):
        ours, theirs = twins.get(a.index), twins.get(b.index)
        if a.shape[i] == b.shape[j] or ours is None or theirs is None or ours.shape[i] != theirs.shape[j]:
            continue
        if changed and op.name not in ELEMENTWISE and (a.weight or b.weight):
            continue  # a matrix that mixes positions is made for one length
        names = _different_names(ours.symbols[i], theirs.symbols[j], changed, namer)
        if names and item is not None:
            equal = f"{' = '.join(names)} = {ours.shape[i]}"
            remedy = "" if op.name in ELEMENTWISE else "; is a transpose missing?"
            message = f"fails with {probe.what}: {_first_line(probe.error)}"
            text = f"`{_quote(item)}` works only because {equal} ({message}){remedy}"
            yield lint_at(item, "coincidence", text)
            return


def _different_names(ours: str, theirs: str, changed: set[str], namer) -> list[str]:
    """The names of two dimensions, if it is plain that they need not be equal: one follows a letter, one does not."""
    if not changed:  # a model of other sizes
        return [ours, theirs] if ours != theirs and {ours, theirs} <= namer.vectors.keys() else []
    moved, fixed = (ours, theirs) if ours in changed else (theirs, ours)
    fits = [text for text in fixed.split("|") if not changed & set(re.findall(r"[A-Za-z]+", text))]
    if moved not in changed or not fits:
        return []
    return [moved] if fits[0].isdigit() else [moved, fits[0]]


def _first_line(error: Exception) -> str:
    message = str(error).strip().partition("\n")[0]
    return message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"


# --------------------------------------------------------------------------------------------------------------------
# Broadcasts that were hardly meant


def broadcasts(trace) -> Iterator[Lint]:
    """Elementwise operations that stretch both operands, though nobody made the 1 that is stretched on purpose."""
    for call in trace.calls:
        for op in (item for item in call.walk() if isinstance(item, Op) and not item.failed):
            if op.name in ELEMENTWISE and _stretches_by_accident(op):
                item = in_own_code(op)
                if item is not None:
                    yield lint_at(item, "broadcast", _broadcast_text(op, item))


def _stretches_by_accident(op: Op) -> bool:
    tensors = [value for value in op.inputs() if value.shape is not None]
    outputs = op.outputs()
    if len(tensors) < 2 or len(outputs) != 1:
        return False
    out = torch.broadcast_shapes(*(value.shape for value in tensors))  # a loss is reduced afterwards
    if any(value.shape == tuple(out) for value in tensors) or any(_is_fixed(value) for value in tensors):
        return False
    ones = [value for value in tensors if any(_is_stretched(value, d, out) for d in range(-len(value.shape), 0))]
    return bool(ones) and all(_is_computed(value) for value in ones)


def _is_stretched(value: Value, dim: int, out: tuple) -> bool:
    """Whether a 1 that is always 1 becomes longer."""
    always = not value.runs or all(size in (1, None) for size in value.runs[dim])
    return value.shape[dim] == 1 and out[dim] > 1 and always


def _is_fixed(value: Value) -> bool:
    """Whether a tensor is a weight or comes from weights and constants alone."""
    return all(leaf.weight for leaf in _leaves(value))


def _is_computed(value: Value, steps: int = MAX_STEPS) -> bool:
    """Whether a 1 is the size of what a product gave (a Linear with one output), rather than put there by hand."""
    maker = value.maker
    if maker is None or steps == 0:
        return False
    if maker.name in COUNTED or maker.name in ("embedding", "bag"):
        return True
    return any(source.shape == value.shape and _is_computed(source, steps - 1) for source in maker.inputs())


def _broadcast_text(op: Op, item: Item) -> str:
    a, b = op.inputs()[:2]
    out = torch.broadcast_shapes(*(value.shape for value in op.inputs()))
    shapes = f"{shape_text(a)} = {numbers(a)} and {shape_text(b)} = {numbers(b)}"
    result = "(" + ",".join(map(str, out)) + ")"
    return f"`{_quote(item)}` stretches both {shapes} to {result}; squeeze the 1 away, or give both the same dimensions"


def _quote(item: Item) -> str:
    scope: Scope = item.parent
    node = expression_at(scope.code, item.lasti)
    text = source_of(scope.code).text(node) if node is not None else getattr(item, "name", "this line")
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
