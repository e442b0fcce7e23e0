"""A trace as a table: one record for each call and each operation, in the order of execution, nothing folded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lab.tracer.cost import copied, flops, saved_bytes
from lab.tracer.record import Op, Scope
from lab.tracer.source import expression_at, line_at, short_file, source_of, statement_at, targets
from lab.tracer.values import Value, shape_text
from lab.tracer.view import Item, inputs_of, outputs_of


def records(trace: Any) -> list[dict[str, Any]]:
    """One dict for each scope and operation, with plain values only, so that JSON can hold it. All have these keys:

    call          which of the outermost calls it belongs to, from 0
    depth         scopes around it
    kind          "module" (a call of `forward`), "function" (another method, or a plain function) or "op"
    path, class   of the module whose code this is or calls it; "" for the traced model itself and for plain functions
    name          the function or operation
    file, line    where it was called
    expression    what stands there
    assigned      the names its result is given, if it is the whole right-hand side
    inputs, outputs              shapes of the tensors in numbers: [[3, 5, 32]]; None for a nested tensor
    inputs_named, outputs_named  the same in names, with what is not fp32 on a CPU: ["(B,T,D)"]
    params        parameters of a module and all inside it, shared ones counted where they stand first
    flops         of this forward pass, with all inside
    saved_bytes   kept for the backward pass, with all inside
    copied        whether an operation that may return a view made a copy; None where the question does not arise
    seconds       with all inside, and with what recording it took
    failed        whether an exception passed through it

    `trace(..., only=)` limits what is shown as rows, not this table.
    """
    return [
        _record(trace, index, depth, item)
        for index, call in enumerate(trace.calls)
        for depth, item in _with_depth(call, 0)
    ]


def _with_depth(item: Item, depth: int) -> Iterator[tuple[int, Item]]:
    yield depth, item
    for child in item.children if isinstance(item, Scope) else ():
        yield from _with_depth(child, depth + 1)


def _record(trace: Any, index: int, depth: int, item: Item) -> dict[str, Any]:
    scope = item.parent if isinstance(item, Op) else item
    return {
        "call": index,
        "depth": depth,
        "kind": "op" if isinstance(item, Op) else "module" if item.is_module else "function",
        "path": scope.path,
        "class": scope.owner,
        "name": item.name if isinstance(item, Op) else item.function,
        **_place(item),
        "inputs": [_numbers(value) for value in inputs_of(item)],
        "outputs": [_numbers(value) for value in outputs_of(item)],
        "inputs_named": [shape_text(value) for value in inputs_of(item)],
        "outputs_named": [shape_text(value) for value in outputs_of(item)],
        "params": trace.params.count(item.path) if isinstance(item, Scope) and item.is_module else 0,
        "flops": flops(item),
        "saved_bytes": saved_bytes(item),
        "copied": copied(item) if isinstance(item, Op) else None,
        "seconds": item.seconds,
        "failed": item.failed,
    }


def _numbers(value: Value) -> list[int] | None:
    return None if value.shape is None else list(value.shape)


def _place(item: Item) -> dict[str, Any]:
    """Where it stands in the source; an outermost call, which stands outside of what was recorded: its `def`."""
    if item.parent.parent is None:
        code = item.code
        return {"file": short_file(code.co_filename), "line": code.co_firstlineno, "expression": "", "assigned": ""}
    code = item.parent.code
    node, statement, source = expression_at(code, item.lasti), statement_at(code, item.lasti), source_of(code)
    whole = node is not None and getattr(statement, "value", None) is node
    return {
        "file": short_file(code.co_filename),
        "line": line_at(code, item.lasti),
        "expression": source.text(node) if node is not None else "",
        "assigned": ", ".join(source.text(target) for target in targets(statement)) if whole else "",
    }
