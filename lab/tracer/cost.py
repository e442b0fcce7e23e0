"""What an operation costs: floating-point operations, bytes kept for the backward pass, whether memory was copied.

FLOPs are those that `torch.utils.flop_counter` counts: two for each multiply-add of a matrix product, convolution or
attention, nothing for elementwise work. Its formulas are asked with the recorded shapes on the meta device, once for
each kind of operation, so that counting costs the traced run nothing. There attention takes its plain path and is
counted, which on a CPU FlopCounterMode itself does not do. A causal mask is not taken off.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lab.tracer.record import Op, Scope
from lab.tracer.values import Value

# Operations that multiply matrices or may do so; of all others the counter knows that they count nothing.
COUNTED = {
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum", "tensordot", "bilinear", "mv", "dot",
    "inner", "__matmul__", "__rmatmul__", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "chain_matmul",
    "scaled_dot_product_attention", "multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "multi_dot", "outer",
    "addmv",
}  # fmt: skip


def flops(item: Op | Scope) -> int:
    """FLOPs of an operation, or of all operations inside a scope, in this one forward pass."""
    if isinstance(item, Scope):
        return sum(flops(child) for child in item.children)
    if item.failed or item.name not in COUNTED:
        return 0
    return _count(item.func, _key(item.args), _key(item.kwargs))


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
    if isinstance(tree, tuple | list):
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
def _count(func: Any, args: Any, kwargs: Any) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), warnings.catch_warnings(), counter:
        warnings.simplefilter("ignore")
        func(*_meta(args), **_meta(kwargs))
    return counter.get_total_flops()


def number(count: float, unit: str) -> str:
    """`262 kFLOP`, `1.57 MFLOP`, `194 KiB`: three digits. Bytes go by powers of 1024."""
    step, prefixes = (1024, ["", "Ki", "Mi", "Gi", "Ti"]) if unit == "B" else (1000, ["", "k", "M", "G", "T", "P"])
    index = 0
    while abs(count) >= 999.5 and index < len(prefixes) - 1:
        count, index = count / step, index + 1
    digits = (
        f"{count:.0f}"
        if count >= 99.95 or count == int(count)
        else f"{count:.1f}"
        if count >= 9.995
        else f"{count:.2f}"
    )
    return f"{digits} {prefixes[index]}{unit}"
