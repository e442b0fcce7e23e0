"""Words for a failure: which dimensions clash, and, where no change of the code could be tried, what to look at."""

from __future__ import annotations

import math
from typing import Any

from lab.tracer import probe as probing
from lab.tracer.record import Op, Scope
from lab.tracer.sizes import sizes_of
from lab.tracer.values import Value, numbers

ELEMENTWISE = {
    "__add__", "add", "__radd__", "__sub__", "sub", "__rsub__", "__mul__", "mul", "__rmul__", "__truediv__", "div",
    "__pow__", "pow", "__iadd__", "__isub__", "__imul__", "__eq__", "eq", "__lt__", "lt", "__gt__", "gt",
    "__ge__", "ge", "__le__", "le", "__and__", "__or__", "masked_fill", "masked_fill_", "where", "add_", "mul_", "sub_",
    "maximum", "minimum", "__itruediv__", "div_", "logical_and", "logical_or",
}  # fmt: skip
MATMUL = {"__matmul__", "matmul", "bmm", "mm", "__rmatmul__", "mv"}


def clash_of(item: Op | Scope) -> str:
    """Which dimensions of an operation's operands don't fit, in words; "" where that is not known."""
    if isinstance(item, Scope):
        return ""
    values = [v for v in item.inputs() if v.shape is not None]
    if item.name in ELEMENTWISE and len(values) >= 2:
        return _broadcast_clash(values[0], values[-1] if item.name == "masked_fill" else values[1])
    if item.name in MATMUL and len(values) == 2:
        return _matmul_clash(*values)
    if item.name == "linear" and len(values) >= 2 and values[0].shape:
        x, weight = values[0], values[1]
        if x.shape[-1] != weight.shape[-1]:
            return f"dim -1, {_size(x, -1)} against in_features={weight.shape[-1]}"
    if item.name in ("view", "reshape", "unflatten") and values:
        wanted = [n for n in _flat(item.args[1:]) if isinstance(n, int)]
        have, need = math.prod(values[0].shape), math.prod(wanted)
        if item.name != "unflatten" and wanted and -1 not in wanted and have == need:
            return "the numbers lie in memory in another order: a view cannot be taken"
        if item.name != "unflatten" and wanted and -1 not in wanted:
            return f"{numbers(values[0])} holds {have:,} numbers, {tuple(wanted)} {need:,}"
    if item.name in ("cat", "concat") and len(values) >= 2:
        return _cat_clash(item, values)
    dtypes = {str(v.dtype).removeprefix("torch.") for v in values}
    return " against ".join(sorted(dtypes)) if len(dtypes) > 1 and item.name in MATMUL | {"linear"} else ""


def _flat(tree: Any) -> list:
    return [x for part in tree for x in (_flat(part) if isinstance(part, tuple) else [part])]


def _size(value: Value, dim: int) -> str:
    size, symbol = value.shape[dim], value.symbols[dim] if value.symbols else ""
    return f"{symbol}={size}" if symbol and symbol != str(size) else str(size)


def _broadcast_clash(a: Value, b: Value) -> str:
    for dim in range(-1, -min(len(a.shape), len(b.shape)) - 1, -1):
        if a.shape[dim] != b.shape[dim] and 1 not in (a.shape[dim], b.shape[dim]):
            return f"dim {dim}, {_size(a, dim)} against {_size(b, dim)}"
    return ""


def _matmul_clash(a: Value, b: Value) -> str:
    inner = -2 if len(b.shape) > 1 else -1
    if a.shape and b.shape and a.shape[-1] != b.shape[inner]:
        return (
            f"the product sums over dim -1 of the left, {_size(a, -1)}, and dim {inner} of the right, {_size(b, inner)}"
        )
    for dim in range(-3, -min(len(a.shape), len(b.shape)) - 1, -1):
        if a.shape[dim] != b.shape[dim] and 1 not in (a.shape[dim], b.shape[dim]):
            return f"dim {dim}, {_size(a, dim)} against {_size(b, dim)}"
    return ""


def _cat_clash(op: Op, values: list[Value]) -> str:
    dim = op.kwargs.get("dim", op.args[1] if len(op.args) > 1 else 0)
    for other in values[1:]:
        if len(other.shape) != len(values[0].shape):
            return f"{len(values[0].shape)} dimensions against {len(other.shape)}"
        for d in range(len(other.shape)):
            if d != dim % len(other.shape) and other.shape[d] != values[0].shape[d]:
                return f"joined along dim {dim}, but dim {d} differs: {_size(values[0], d)} against {_size(other, d)}"
    return ""


def hint_for(trace: Any, failure: Any, error: BaseException, texts: dict[int, str]) -> str:
    """What to do, in words, where no change of the code was found that mends the call.

    texts: how each operand is written in the source, by the id of its Value.
    """
    op = failure.op
    if op is None:
        return ""
    values = [v for v in op.inputs() if v.shape is not None]
    for text in (_replaced_part(trace, values), _state_of_other_rows(trace)):
        if text:
            return text
    for rule in (_devices, _dtypes, _embedding, _cross_entropy, _in_features, _heads):
        text = rule(op, values, str(error))
        if text:
            return text
    return _lengths(op, values, texts)


def _replaced_part(trace: Any, values: list[Value]) -> str:
    """A weight of the failing operation that the model's own constructor makes in another shape."""
    call = trace.calls[-1]
    if not trace.probe or trace.names is None or call.replay.module is None:
        return ""
    sizes = sizes_of(trace.names)
    try:
        with probing.nothing_changes():
            new = dict(probing.rebuilt(call.replay.module, trace.names, trace.names, (sizes, sizes)).named_parameters())
    except Exception:  # it can't be made anew, so there is nothing to compare with
        return ""
    prefix = f"{call.path}." if call.path else ""
    for value in values:
        twin = new.get(value.origin.removeprefix(prefix)) if value.weight else None
        if twin is not None and tuple(twin.shape) != value.shape:
            return (
                f"{value.origin} is {tuple(value.shape)}, but the constructor makes it "
                f"{tuple(twin.shape)}: it was replaced after the model was made"
            )
    return ""


def _state_of_other_rows(trace: Any) -> str:
    """An input beside the first, such as a context with decode state, that was made for another number of rows."""
    replay = trace.calls[-1].replay
    rows = replay.letters.get("B")
    for value in [*replay.args[1:], *replay.kwargs.values()] if rows is not None else ():
        cache = getattr(value, "cache", None)
        if not isinstance(cache, dict):
            continue
        states = list(probing.tensors_of([cache]))
        if states and not any(rows in state.shape for state in states):
            kind = type(value).__name__
            return f"the {kind} holds the decode state of other rows than these {rows}: make a new one for them"
    return ""


def _devices(op: Op, values: list[Value], message: str) -> str:
    devices = {str(v.device) for v in values}
    if len(devices) > 1:
        return f"tensors on {' and '.join(sorted(devices))}: move inputs and model to one device with .to(device)"
    return ""


def _dtypes(op: Op, values: list[Value], message: str) -> str:
    floats = {v.dtype for v in values if v.dtype.is_floating_point}
    if len(floats) > 1 and "dtype" in message.lower():
        return f"operands of {' and '.join(sorted(str(d) for d in floats))}: convert one with .to(other.dtype)"
    return ""


def _embedding(op: Op, values: list[Value], message: str) -> str:
    if op.name == "embedding" and values and values[0].dtype.is_floating_point:
        return "an embedding looks up whole numbers: pass token ids, or convert with .long()"
    if op.name == "embedding" and "index out of range" in message:
        return f"an id is outside 0..{values[1].shape[0] - 1}: was the text encoded with another tokenizer?"
    return ""


def _cross_entropy(op: Op, values: list[Value], message: str) -> str:
    if op.name == "cross_entropy" and values and len(values[0].shape) == 3:
        return "cross_entropy wants classes in dim 1: pass logits.flatten(0, 1) and targets.flatten()"
    return ""


def _in_features(op: Op, values: list[Value], message: str) -> str:
    if op.name == "linear" and len(values) > 1 and values[0].shape and values[0].shape[-1] != values[1].shape[-1]:
        return f"the layer was made for {values[1].shape[-1]} inputs but gets {_size(values[0], -1)}"
    return ""


def _heads(op: Op, values: list[Value], message: str) -> str:
    if op.name in MATMUL | {"scaled_dot_product_attention"} and len(values) > 1:
        a, b = values[:2]
        if len(a.shape) == len(b.shape) == 4 and a.shape[1] != b.shape[1] and a.shape[1] % b.shape[1] == 0:
            return (
                f"{a.shape[1]} query heads against {b.shape[1]} key/value heads: repeat these "
                f"{a.shape[1] // b.shape[1]} times (repeat_interleave), or give sdpa enable_gqa=True"
            )
    return ""


def _lengths(op: Op, values: list[Value], texts: dict[int, str]) -> str:
    """A mask that was built for another length."""
    if op.name not in ELEMENTWISE | {"scaled_dot_product_attention"} or len(values) < 2:
        return ""
    scores, mask = (values[0], values[-1]) if len(values[0].shape) >= len(values[-1].shape) else (values[-1], values[0])
    for dim in (-1, -2):
        if len(mask.shape) >= -dim and len(scores.shape) >= -dim and mask.shape[dim] not in (1, scores.shape[dim]):
            name, other = texts.get(id(mask), "one operand"), texts.get(id(scores), "the other")
            have, need = mask.shape[dim], scores.shape[dim]
            remedy = f"slice it to the first {need}" if have > need else "build it for the longest row, then slice it"
            return f"{name} was built for {have} places but {other} has {_size(scores, dim)}: {remedy}"
    return ""
