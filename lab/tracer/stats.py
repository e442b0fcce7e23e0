"""Numbers about a tensor's values, and where the first value that is not finite came from."""

from __future__ import annotations

from typing import Any

import torch

from lab.tracer.failure import climb
from lab.tracer.record import Op, Scope
from lab.tracer.source import expression_at, line_at, short_file, source_of
from lab.tracer.values import Value, tensors_in

MAX_EXPRESSION = 60  # characters of source that are quoted


def measure(tensor: torch.Tensor) -> dict[str, float]:
    """`nan`, `inf` (both signs), `-inf`: how many; `mean`, `std`, `min`, `max` of what is finite; `zeros`: a share.

    Computed in float64. std divides by the number of values. Complex numbers are measured by their magnitude, bools as
    0 and 1, sparse tensors by what they store. Empty where there is nothing to look at (meta, nested, uninitialised).
    """
    with torch._C.DisableTorchFunction(), torch.no_grad():
        try:
            values = None if torch.nn.parameter.is_lazy(tensor) else _values(tensor.detach())
            return {} if values is None else _numbers(values)
        except (RuntimeError, TypeError):  # a kind of tensor that can't be read, such as one inside torch.func.vmap
            return {}


def _values(tensor: torch.Tensor) -> torch.Tensor | None:
    if tensor.is_meta or tensor.is_nested:
        return None
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce().values()
    elif tensor.layout != torch.strided:
        tensor = tensor.values()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    return tensor.to(torch.complex128).abs() if tensor.is_complex() else tensor.to(torch.float64)


def _numbers(values: torch.Tensor) -> dict[str, float]:
    good = values[values.isfinite()]
    found: dict[str, float] = {"nan": int(values.isnan().sum()), "inf": int(values.isinf().sum())}
    found["-inf"] = int(values.isneginf().sum())
    if good.numel():
        scale = good.abs().max().item() or 1.0  # sums of values near the limit would overflow
        std, mean = torch.std_mean(good / scale, correction=0)
        found |= {"mean": mean.item() * scale, "std": std.item() * scale}
        found |= {"min": good.min().item(), "max": good.max().item()}
    if values.numel():
        found["zeros"] = int((values == 0).sum()) / values.numel()
    return found


# --------------------------------------------------------------------------------------------------------------------
# The first value that is not finite

_UNSET = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_REARRANGES = {  # of these the result may hold a larger share of infinities than what they were given
    "__getitem__", "gather", "index_select", "take_along_dim", "cumsum", "cummax", "cummin", "logcumsumexp", "sort",
}  # fmt: skip


def first_nonfinite(trace: Any) -> str | None:
    """One line about the first operation that gave nan or inf though its inputs had none; None if there is none.

    An infinity that was written on purpose is none, such as the one that `masked_fill` or `full` was given. Nor is a
    -inf from `log` that disappears again, as a mask's does in softmax. Needs a trace with stats=True.
    """
    search = _Search()
    for call in trace.calls:
        line = search.in_call(call)
        if line is not None:
            return f"first non-finite value: {line}"
    return None


class _Search:
    """`expected`: indices of tensors whose infinities are meant; `logs`: of those, the `log` they may come from."""

    def __init__(self):
        self.expected: set[int] = set()
        self.logs: dict[int, Op] = {}

    def in_call(self, call: Scope) -> str | None:
        for op in (item for item in call.walk() if isinstance(item, Op) and not item.failed):
            for value in op.inputs():
                if value.maker is None and _count(value) and not _only_negative(value):
                    return f"{value.origin or 'a tensor from outside'}: {_amount([value])}"
                if value.maker is None and _count(value):
                    self.expected.add(value.index)
            culprit = self._judge(op)
            if culprit is not None:
                return _describe(culprit)
        for value in tensors_in(call.output):
            if value.index in self.logs and _count(value):
                return _describe(self.logs[value.index])
        return None

    def _judge(self, op: Op) -> Op | None:
        """Notes what to expect of the results of an operation. Returns the operation to blame, where there is one."""
        inputs = op.inputs()
        meant = any(value.index in self.expected for value in inputs)
        origin = next((self.logs[value.index] for value in inputs if value.index in self.logs), None)
        written = _infinity_in((op.args, op.kwargs)) or op.name in _UNSET
        if op.name == "__setitem__" and inputs and (meant or written):
            self.expected.add(inputs[0].index)
        for value in filter(_count, op.outputs()):
            harmless = not value.stats["nan"] and (written or (meant and not self._spreads(op, value)))
            if op.name not in _UNSET and not harmless:
                if op.name not in ("log", "log_") or not _only_negative(value):
                    return origin or op
                origin = op
            self.expected.add(value.index)
            if origin is not None:
                self.logs[value.index] = origin
        return None

    def _spreads(self, op: Op, output: Value) -> bool:
        """Whether an elementwise operation gave more infinities than went into it."""
        inputs = op.inputs()
        if op.name in _REARRANGES or any(v.index in self.expected and not _count(v) for v in inputs):
            return False  # the second: written into later than it was measured
        try:
            elementwise = torch.broadcast_shapes(*(value.shape for value in inputs)) == output.shape
        except RuntimeError:
            return False
        return elementwise and _share(output) > sum(map(_share, inputs)) + 1e-9


def _share(value: Value) -> float:
    return _count(value) / max(torch.Size(value.shape).numel(), 1)


def _count(value: Value) -> int:
    stats = value.stats or {}
    return int(stats.get("nan", 0) + stats.get("inf", 0))


def _only_negative(value: Value) -> bool:
    stats = value.stats or {}
    return not stats.get("nan") and stats.get("inf", 0) == stats.get("-inf", 0)


def _infinity_in(tree: Any) -> bool:
    if isinstance(tree, tuple | list):
        return any(_infinity_in(item) for item in tree)
    if isinstance(tree, dict):
        return any(_infinity_in(item) for item in tree.values())
    return isinstance(tree, float) and tree in (float("inf"), float("-inf"))


def _describe(op: Op) -> str:
    item = climb(op)
    code = item.parent.code
    node = expression_at(code, item.lasti)
    text = source_of(code).text(node) if node is not None else op.name
    text = text if len(text) <= MAX_EXPRESSION else text[: MAX_EXPRESSION - 1] + "…"
    place = f"{short_file(code.co_filename)}:{line_at(code, item.lasti)}"
    return f"{item.parent.title()} {place} `{text}`: {_amount(op.outputs())}"


def _amount(values: list[Value]) -> str:
    totals = {name: sum((v.stats or {}).get(name, 0) for v in values) for name in ("nan", "inf")}
    return ", ".join(f"{int(total):,} {name}" for name, total in totals.items() if total)
