"""What an operation costs: floating-point operations, bytes kept for the backward pass, whether memory was copied.

FLOPs are those that `torch.utils.flop_counter` counts: two for each multiply-add of a matrix product, convolution or
attention, nothing for elementwise work. The usual products are put to its formulas directly; so is attention, which
FlopCounterMode does not see on a CPU. Everything else runs once more on the meta device, which knows shapes and no
data, under FlopCounterMode: what that imports takes a second the first time. A causal mask is not taken off.
"""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, bmm_flop, mm_flop

from lab.tracer.record import Op, Scope
from lab.tracer.values import Value

# Operations that multiply matrices or may do so; of all others the counter knows that they count nothing.
COUNTED = {
    "linear", "matmul", "mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "addbmm", "einsum", "tensordot",
    "bilinear", "mv", "addmv", "dot", "vdot", "vecdot", "inner", "outer", "chain_matmul", "multi_dot", "__matmul__",
    "__rmatmul__", "__imatmul__", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "lstm_cell", "gru",
    "gru_cell", "rnn_tanh", "rnn_relu",
}  # fmt: skip


def flops(item: Op | Scope) -> int:
    """FLOPs of an operation, or of all operations inside a scope, in this one forward pass; see also `uncounted`."""
    if item.flops is None:
        if isinstance(item, Scope):
            item.flops = sum(flops(child) for child in item.children)
        else:
            item.flops = (_count_of(item) or 0) if item.name in COUNTED and not item.failed else 0
    return item.flops


def uncounted(scope: Scope) -> list[str]:
    """Names of the operations inside that should have been counted and could not be."""
    asked = (item for item in scope.walk() if isinstance(item, Op) and item.name in COUNTED and not item.failed)
    return sorted({op.name for op in asked if not flops(op) and _count_of(op) is None})


def _count_of(op: Op) -> int | None:
    shapes = [arg.shape for arg in op.args if isinstance(arg, Value)]
    formula = _FORMULAS.get(op.name)
    if formula is not None and None not in shapes and not any(isinstance(v, Value) for v in op.kwargs.values()):
        count = formula(op, *shapes)
        if count is not None:
            return count
    return _count(op.func, _key(op.args), _key(op.kwargs))


def _linear(op: Op, x: tuple, weight: tuple, *bias: tuple) -> int | None:
    return mm_flop((math.prod(x[:-1]), x[-1]), weight[::-1]) if len(weight) == 2 else None


def _matmul(op: Op, *shapes: tuple) -> int | None:
    a, b = shapes[-2:]
    if min(len(a), len(b)) < 2 or not isinstance(op.output, Value):
        return None
    batch = math.prod(op.output.shape[:-2])
    return bmm_flop((batch, *a[-2:]), (batch, *b[-2:]))


def _attention(op: Op, q: tuple, k: tuple, v: tuple, *mask: tuple) -> int | None:
    heads = math.prod(q[:-2])
    T, K, S = q[-2], q[-1], k[-2]
    return bmm_flop((heads, T, K), (heads, K, S)) + bmm_flop((heads, T, S), (heads, S, v[-1]))


def _einsum(op: Op, *shapes: tuple) -> int | None:
    """A matrix product in Einstein's notation: each letter stands twice or more, and one is summed over."""
    terms = op.args[0].replace("->", ",").replace(" ", "").split(",") if isinstance(op.args[0], str) else []
    if len(terms) != 3 or len(shapes) != 2 or "." in op.args[0]:
        return None
    sizes = dict(zip(terms[0] + terms[1], [*shapes[0], *shapes[1]]))
    plain = all(len(set(term)) == len(term) for term in terms) and all(sum(x in t for t in terms) > 1 for x in sizes)
    summed = set(sizes) - set(terms[2])
    return 2 * math.prod(sizes.values()) if plain and summed else None


_FORMULAS = {
    "linear": _linear, "matmul": _matmul, "__matmul__": _matmul, "mm": _matmul, "bmm": _matmul, "addmm": _matmul,
    "baddbmm": _matmul, "scaled_dot_product_attention": _attention, "einsum": _einsum,
}  # fmt: skip


def saved_bytes(item: Op | Scope) -> int:
    """Bytes kept for the backward pass: each storage once, parameters not counted, since they are there anyway."""
    return item.saved + (sum(saved_bytes(child) for child in item.children) if isinstance(item, Scope) else 0)


def copied(op: Op) -> bool | None:
    """Whether the result lies in memory of its own; None where that was not asked."""
    if not any(op.storages):
        return None
    return op.storages[0] != op.storages[1]


def _key(tree: Any) -> Any:
    """The arguments with shapes in the place of tensors, hashable."""
    if isinstance(tree, Value):
        return _Shape(tree.shape, tree.dtype)
    if isinstance(tree, (tuple, list)):
        return tuple(_key(item) for item in tree)
    if isinstance(tree, dict):
        return _Dict(tuple((key, _key(item)) for key, item in tree.items()))
    return _Slice(tree.start, tree.stop, tree.step) if isinstance(tree, slice) else tree


class _Shape(tuple):
    def __new__(cls, shape, dtype):
        return super().__new__(cls, (shape, dtype))


class _Dict(tuple):
    pass


class _Slice(tuple):
    def __new__(cls, *ends):
        return super().__new__(cls, ends)


def _meta(key: Any) -> Any:
    if isinstance(key, _Shape):
        return torch.empty(key[0], dtype=key[1], device="meta")
    if isinstance(key, _Dict):
        return {name: _meta(item) for name, item in key}
    if isinstance(key, _Slice):
        return slice(*key)
    return tuple(_meta(item) for item in key) if isinstance(key, tuple) else key


@lru_cache(maxsize=4096)
def _count(func: Any, args: Any, kwargs: Any) -> int | None:
    """FLOPs of an operation on tensors of these shapes; None where it does not run without data."""
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), warnings.catch_warnings(), counter:
            warnings.simplefilter("ignore")
            func(*_meta(args), **_meta(kwargs))
    except Exception:  # whatever it is (a nested tensor, a kernel without a meta version): the trace says so
        return None
    return counter.get_total_flops()


def number(count: float, unit: str) -> str:
    """`262 kFLOP`, `1.57 MFLOP`, `194 KiB`: three digits. Bytes go by powers of 1024."""
    step, prefixes = (1024, ["", "Ki", "Mi", "Gi", "Ti"]) if unit == "B" else (1000, ["", "k", "M", "G", "T", "P"])
    index = 0
    while abs(count) >= 999.5 and index < len(prefixes) - 1:
        count, index = count / step, index + 1
    decimals = 0 if count >= 99.95 or count == int(count) else 1 if count >= 9.995 else 2
    return f"{count:.{decimals}f} {prefixes[index]}{unit}"
