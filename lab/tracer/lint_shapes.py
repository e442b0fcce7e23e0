"""Lints about shapes: products over differently named dimensions, unintended broadcasting, coincidences of sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from lab.tracer.cost import COUNTED
from lab.tracer.lint_base import Item, Lint, in_own_code, lint_at
from lab.tracer.record import Op, Scope
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


def contracted(op: Op) -> list[Pair]:
    """The pairs of dimensions that a matrix product, einsum or attention sums over."""
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
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if "..." in equation or not arrow or len(terms) != len(tensors):
        return []
    pairs, first = [], {}
    for term, value in zip(terms, tensors):
        for dim, letter in enumerate(term[: len(value.shape)]):
            if letter in first and letter not in output:
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
# Contractions of differently named dimensions


def contractions(trace) -> Iterator[Lint]:
    """Products over dimensions that have different names: equal in this run, different in another one."""
    for index, call in enumerate(trace.calls):
        trusted = [0, *(i + 1 for i, probe in enumerate(trace.probes.get(index, [])) if not probe.ambiguous)]
        for op in (item for item in call.walk() if isinstance(item, Op) and not item.failed):
            for pair in contracted(op):
                text = _differing(pair, trusted)
                item = in_own_code(op)
                if text and item is not None:
                    yield lint_at(item, "contraction", f"`{_quote(item)}` {text}; is a transpose missing?")


def _differing(pair: Pair, trusted: list[int]) -> str:
    a, i, b, j = pair
    if a.weight or b.weight or not a.runs or not b.runs:  # a matrix made for one length is meant
        return ""
    ours, theirs = a.runs[i], b.runs[j]
    known = [n for n in trusted if n < min(len(ours), len(theirs)) and None not in (ours[n], theirs[n])]
    if all(ours[n] == theirs[n] for n in known):
        return ""
    return f"sums over {a.symbols[i]} of {shape_text(a)} and {b.symbols[j]} of {shape_text(b)}, both {ours[0]} here"


# --------------------------------------------------------------------------------------------------------------------
# Coincidences: what works with these sizes alone


def coincidences(trace) -> Iterator[Lint]:
    """Operations that failed in a probe because two dimensions were no longer equal."""
    for index, probes in trace.probes.items():
        call = trace.calls[index]
        if call.failed:
            continue
        for probe in probes:
            op = probe.failed_at
            if isinstance(op, Op) and _is_shape_error(probe.error) and _is_certain(probe, op):
                yield from _coincidence(trace, index, probe, op)


_SHAPE_ERROR = re.compile(r"size|shape|match|multipl|dimension|broadcast|einsum|expand", re.IGNORECASE)


def _is_shape_error(error: Exception | None) -> bool:
    return isinstance(error, RuntimeError) and bool(_SHAPE_ERROR.search(str(error)))


def _is_certain(probe: Any, op: Op) -> bool:
    """Whether the failure can't come from an input that was misread: the first input's leading dims are known."""
    if not probe.ambiguous:
        return True
    given = (value for argument in probe.call.arguments for value in tensors_in(argument.info))
    first = next(given, None)
    return all(leaf is first or leaf.weight for value in op.inputs() for leaf in _leaves(value))


def _leaves(value: Value, seen: set[int] | None = None) -> Iterator[Value]:
    """The tensors that no recorded operation made, from which a tensor was computed."""
    seen = set() if seen is None else seen
    if value.index in seen:
        return
    seen.add(value.index)
    if value.maker is None:
        yield value
        return
    for source in value.maker.inputs():
        yield from _leaves(source, seen)


def _coincidence(trace, index: int, probe: Any, op: Op) -> Iterator[Lint]:
    recorded = {id(twin): trace.values[i] for i, twin in probe.twins.items() if i < len(trace.values)}
    namer, item = trace.namers[index], in_own_code(op)
    for a, i, b, j in contracted(op) + aligned(op):
        ours, theirs = recorded.get(id(a)), recorded.get(id(b))
        if a.shape[i] == b.shape[j] or ours is None or theirs is None or ours.shape[i] != theirs.shape[j]:
            continue
        if op.name not in ELEMENTWISE and (a.weight or b.weight):  # a matrix made for one length is meant
            continue
        letters = _letters(namer, ours, i, theirs, j, probe)
        if letters and item is not None:
            message = str(probe.error).strip().partition("\n")[0]
            message = message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
            equal = f"{' = '.join(letters)} = {ours.shape[i]}"
            text = f"`{_quote(item)}` works only because {equal} (fails with {probe.what}: {message})"
            yield lint_at(item, "coincidence", text)
            return


def _letters(namer, ours: Value, i: int, theirs: Value, j: int, probe: Any) -> list[str]:
    """Names of the two dimensions, if it is plain that they should not be equal: one follows a letter, one does not."""
    names = [_name(ours, i, namer), _name(theirs, j, namer)]
    changed = [letter for letter in ("T", "B", "S") if probe.letters.get(letter) != namer.runs[0].get(letter)]
    if changed:
        moved = [n for n in names if n in changed]
        others = [n for n in names if n not in moved]
        fixed = [n for n in others if not set(re.findall(r"[A-Za-z]+", n)) & set(changed)]
        return [*moved, *(n for n in fixed if not n.isdigit())] if len(moved) == len(fixed) == 1 else []
    letters = all(name in namer.vectors for name in names)
    return names if letters and names[0] != names[1] else []


def _name(value: Value, dim: int, namer) -> str:
    """A letter if one fits all runs, else the formula, else the number."""
    return value.symbols[dim] if value.symbols else str(value.shape[dim])


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
