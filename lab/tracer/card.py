"""The card that is attached to an exception: where, which operands, what clashes, and what to do about it.

    ✗ ResidualLayer › attn › attend()     model.py:141
        logits + mask
        logits  (B,H,T,T) = (2,8,16,16)   from :139
        mask    (8,8)                     argument 'mask' of ResidualLayer.forward
        clash: dim -1, T=16 against 8
      last good: attn › scores() → (B,H,T,T)
      hint: ...

The exception itself stays what it was: the card is a note (`add_note`), and `tr.card` holds it as an object.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from types import FrameType, ModuleType, TracebackType
from typing import Any

from lab.tracer.failure import Failure, climb, failed_scopes, find_failure
from lab.tracer.hints import clash_of, hint_for
from lab.tracer.record import Op, Scope
from lab.tracer.repair import constructor_line, mend
from lab.tracer.source import expression_at, line_at, operands, short_file, source_of, statement_at
from lab.tracer.values import Value, numbers, render, shape_text, tensors_in
from lab.tracer.view import op_name

MAX_OPERANDS = 4


@dataclass
class Operand:
    """One tensor of the failing expression: how it is written, what it is, where it came from."""

    text: str
    value: Value
    origin: str
    place: tuple[str, int] | None = None


@dataclass
class Card:
    """What is known of a failure. `lines`: every (file, line) that the text names, the failing one first."""

    title: str
    file: str
    line: int
    expression: str
    operands: list[Operand] = field(default_factory=list)
    clash: str = ""
    last_good: str = ""
    hint: str = ""
    fix: Any = None  # None, or a `repair.Fix` that was tried and found to mend the call
    places: list[tuple[str, int]] = field(default_factory=list)

    @property
    def lines(self) -> list[tuple[str, int]]:
        found = [(self.file, self.line)]
        found += [(self.fix.file, self.fix.line)] if self.fix is not None else []
        found += [operand.place for operand in self.operands if operand.place is not None]
        return list(dict.fromkeys(found + self.places))

    def __str__(self) -> str:
        lines = [f"✗ {self.title}     {short_file(self.file)}:{self.line}"]
        lines += [f"    {self.expression}"] if self.expression else []
        width = max((len(operand.text) for operand in self.operands), default=0)
        shapes = [_shape(operand.value) for operand in self.operands]
        span = max(map(len, shapes), default=0)
        for operand, shape in zip(self.operands, shapes, strict=True):
            lines.append(f"    {operand.text:<{width}}  {shape:<{span}}  {operand.origin}".rstrip())
        lines += [f"    clash: {self.clash}"] if self.clash else []
        lines += [f"  last good: {self.last_good}"] if self.last_good else []
        lines += [f"  hint: {self.hint}"] if self.hint else []
        return "\n".join(lines)


def _shape(value: Value) -> str:
    named = shape_text(value)
    return (
        f"{named} = {numbers(value)}"
        if value.symbols is not None and named[: len(numbers(value))] != numbers(value)
        else named
    )


# --------------------------------------------------------------------------------------------------------------------


def make_card(trace: Any, error: BaseException, traceback: TracebackType | None, recorded: Any) -> Card | None:
    """The card of an exception that ended a session; None where nothing of the model was running."""
    failure = find_failure(trace.calls, traceback, recorded)
    if failure is None:
        return None
    code = failure.frame.f_code
    statement = statement_at(code, failure.lasti)
    node = expression_at(code, failure.lasti) or (statement if isinstance(statement, ast.AugAssign) else None)
    source = source_of(code)
    text = source.text(node) if node is not None else "".join(source.lines[failure.line - 1 : failure.line]).strip()
    card = Card(_title(failure.scope), code.co_filename, failure.line, text)
    if failure.item is not None:
        card.operands = _operands(failure, node, source, trace.model)
        card.clash = clash_of(failure.op or failure.item)
    else:
        card.operands = _locals_of(failure, node)
    card.last_good = _last_good(trace.calls)
    _add_hint(card, trace, failure, error)
    return card


def _add_hint(card: Card, trace: Any, failure: Failure, error: BaseException) -> None:
    if not isinstance(error, Exception) or isinstance(statement_at(failure.frame.f_code, failure.lasti), ast.Raise):
        return  # someone raised it on purpose, and its own message says what is wrong
    card.fix, places = mend(trace, failure, error)
    if card.fix is not None:
        card.hint = card.fix.text()
        return
    card.hint = hint_for(trace, failure, error, {id(o.value): o.text for o in card.operands})
    card.places = places[:3] if failure.op is not None or isinstance(error, AssertionError) else []
    if card.places:
        card.hint += ("\n        " if card.hint else "") + "look at " + ", ".join(f":{line}" for _, line in card.places)


def _title(scope: Scope) -> str:
    """`ResidualLayer › attn › attend()`"""
    parts: list[str] = []
    while scope.parent is not None:
        outermost = scope.parent.parent is None
        if scope.is_module:
            parent = scope.parent.path
            name = scope.path[len(parent) + 1 :] if parent and scope.path.startswith(parent + ".") else scope.path
            parts.append(name if name and not outermost else scope.owner)
        else:
            parts.append(f"{scope.function}()")
            if outermost and scope.owner:
                parts.append(scope.owner)
        scope = scope.parent
    return " › ".join(reversed(parts))


def made_at(value: Value, outside: ast.stmt | None = None) -> Op | Scope | None:
    """The operation or call in own code that made a tensor.

    With `outside`, what that very statement made on the way is passed over, down to the variable it began with.
    """
    seen = set()
    while value.maker is not None:
        item = climb(value.maker)
        if outside is None or statement_at(item.parent.code, item.lasti) is not outside or item in seen:
            return item
        seen.add(item)
        inputs = item.inputs() if isinstance(item, Op) else [v for a in item.arguments for v in tensors_in(a.info)]
        values = [v for v in inputs if not v.weight]
        if not values:
            return item
        value = values[0]
    return None


def place_of(value: Value, outside: ast.stmt | None = None) -> tuple[str, int] | None:
    """The line of own code that made a tensor."""
    item = made_at(value, outside)
    return None if item is None else (item.parent.code.co_filename, line_at(item.parent.code, item.lasti))


def _origin(value: Value, here: Scope, outside: ast.stmt | None) -> str:
    item = made_at(value, outside)
    if item is None:
        return value.origin
    where = _where(place_of(value, outside), here)
    return f"from {where}" if item.parent is here else f"from {item.parent.function}() {where}"


def _where(place: tuple[str, int], here: Scope) -> str:
    return f":{place[1]}" if place[0] == here.code.co_filename else f"{short_file(place[0])}:{place[1]}"


def _operands(failure: Failure, node: ast.AST | None, source: Any, model: Any) -> list[Operand]:
    item = failure.item
    parts = operands(node, _is_module_name(failure.frame)) if node is not None else []
    if isinstance(item, Op):
        values = _of_operation(item, parts, source)
    else:  # a layer: what it was given, and its weights
        values = [(a.name, a.info) for a in item.arguments if isinstance(a.info, Value)]
        texts = [source.text(part) for part in parts[1:]]  # the first is the layer's owner, `self`
        values = [(texts[i] if i < len(texts) else name, value) for i, (name, value) in enumerate(values)]
        values += [(w.origin, w) for w in (failure.op.inputs() if failure.op else []) if w.weight]
    statement = statement_at(failure.frame.f_code, failure.lasti)
    found = []
    for text, value in values[:MAX_OPERANDS]:
        made = constructor_line(model, value) if value.weight else None
        if value.weight:
            kind = "buffer" if value.origin in dict(model.named_buffers()) else "parameter"
            origin = f"{kind} {value.origin}" + (f", made at {_where(made, failure.scope)}" if made is not None else "")
        else:
            origin = _origin(value, failure.scope, statement)
        found.append(Operand(text[:40], value, origin, made or place_of(value, statement)))
    return found


def _of_operation(op: Op, parts: list[ast.expr], source: Any) -> list[tuple[str, Value]]:
    """The tensors that an operation was given, each with its text in the source."""
    arguments = list(op.args)
    if op.name.startswith("__r") and len(arguments) == 2:  # 2 * x comes as x.__rmul__(2)
        arguments.reverse()
    found = []
    for i, argument in enumerate(arguments):
        part = parts[i] if i < len(parts) else None
        if isinstance(argument, Value):
            found.append((source.text(part) if part is not None else "operand", argument))
        elif isinstance(argument, tuple):
            inner = part.elts if isinstance(part, ast.Tuple | ast.List) and len(part.elts) == len(argument) else None
            for j, value in enumerate(argument):
                if isinstance(value, Value):
                    found.append((source.text(inner[j]) if inner else f"part {j}", value))
    return found + [(name, value) for name, value in op.kwargs.items() if isinstance(value, Value)]


def _is_module_name(frame: FrameType) -> Any:
    """Says whether a name stands for an imported module, as `torch` and `F` do, rather than for a tensor."""
    return lambda name: isinstance(frame.f_globals.get(name), ModuleType)


def _locals_of(failure: Failure, node: ast.AST | None) -> list[Operand]:
    """For an assert or a plain Python error: the tensors among the names that the failing line mentions."""
    import torch

    statement = statement_at(failure.frame.f_code, failure.lasti) if node is None else node
    names = [n.id for n in ast.walk(statement) if isinstance(n, ast.Name)] if statement is not None else []
    mentioned = [name for name in dict.fromkeys(names) if name != "self"]
    values = failure.frame.f_locals
    arguments = {a.name: a.info for a in failure.scope.arguments}
    found = []
    for name in mentioned:
        value = values.get(name)
        if isinstance(value, torch.Tensor):
            info = arguments.get(name)
            known = (
                info if isinstance(info, Value) and info.shape == tuple(value.shape) else _known(failure.scope, value)
            )
            found.append(Operand(name, known, _origin(known, failure.scope, statement), place_of(known)))
    return found[:MAX_OPERANDS]


def _known(scope: Scope, tensor: Any) -> Value:
    """The recorded value with this tensor's shape that was made last, else a fresh description."""
    fresh = Value(tensor)
    made = [v for item in scope.children for v in (item.outputs() if isinstance(item, Op) else tensors_in(item.output))]
    return next((v for v in reversed(made) if v.shape == fresh.shape and v.dtype == fresh.dtype), fresh)


def _last_good(calls: list[Scope]) -> str:
    """What came back last before the failure, with its shape: a call, or an operation with its line."""
    for scope in reversed(failed_scopes(calls)):
        for item in reversed(scope.children):
            outputs = item.outputs() if isinstance(item, Op) else list(tensors_in(item.output))
            if item.failed or not outputs:
                continue
            if isinstance(item, Scope):
                return f"{item.title()} → {render(item.output)}"
            line = line_at(item.code, item.lasti)
            return f"{op_name(item)} :{line} → {' '.join(shape_text(value) for value in outputs[:3])}"
    return ""
