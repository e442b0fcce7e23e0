"""Lints that read the source beside what ran: results that are never used, flags that were not handed on."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

from lab.tracer.lint_base import Item, Lint, in_own_code, is_own, lint_at, scopes_of
from lab.tracer.record import Op, Scope
from lab.tracer.source import expression_at, function_node, source_of
from lab.tracer.statements import Execution, executions, flat, given_to, tree_of

MAX_TEXT = 60

# --------------------------------------------------------------------------------------------------------------------
# Results that are never used


def unused(trace) -> Iterator[Lint]:
    """Expressions whose tensor is thrown away, and names that get one and are never read afterwards."""
    for scope in scopes_of(trace):
        for execution in executions(scope):
            if any(_has_effect(item) for item in execution.items):
                continue
            statement = execution.statement
            if isinstance(statement, ast.Expr):
                text = _thrown_away(execution)
            elif isinstance(statement, ast.Assign | ast.AnnAssign):
                text = _never_read(execution)
            else:
                continue
            if text:
                yield Lint("unused", text, scope.code.co_filename, statement.lineno)


def _thrown_away(execution: Execution) -> str:
    item = execution.found.get(execution.statement.value)
    if item is None or not flat(tree_of(item)):
        return ""
    node = execution.statement.value
    text = _quote(execution.scope, node)
    first = node.args[0] if isinstance(node, ast.Call) and node.args else None
    outputs, inputs = flat(tree_of(item)), given_to(item)
    same = len(outputs) == 1 and inputs and outputs[0].shape == inputs[0].shape and isinstance(first, ast.Name)
    use = f"write `{first.id} = {text}`" if same else "assign it to a name"
    return f"the result of `{text}` is thrown away; {use}, or remove the line"


def _never_read(execution: Execution) -> str:
    statement, function = execution.statement, function_node(execution.scope.code)
    given = [(name, flat(tree)) for name, tree in execution.assigned()]
    names = [name for name, values in given if values and not name.startswith("_")]
    if function is None or not names or not all(name.isidentifier() for name, _ in given):
        return ""
    if any(_is_read_later(function, statement, name) for name, _ in given):
        return ""
    listed = ", ".join(f"`{name}`" for name in names)
    text = _quote(execution.scope, statement.value)
    return f"{listed} = `{text}` is never read afterwards; use it, or remove the line"


def _has_effect(item: Item) -> bool:
    """Whether something happens besides what is returned: a tensor is changed in place, something is stored."""
    if isinstance(item, Op):
        in_place = item.name.endswith("_") and item.name not in _PLAIN_DUNDERS
        return in_place or item.kwargs.get("inplace") is True or "out" in item.kwargs
    own = isinstance(item, Scope) and is_own(item)
    return (own and _stores(function_node(item.code))) or any(_has_effect(child) for child in item.children)


_PLAIN_DUNDERS = {
    "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__matmul__",
    "__rmatmul__", "__pow__", "__rpow__", "__neg__", "__getitem__", "__and__", "__or__", "__xor__", "__invert__",
    "__floordiv__", "__rfloordiv__", "__mod__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__abs__",
}  # fmt: skip
_MUTATORS = {"append", "extend", "insert", "update", "setdefault", "add", "pop", "clear", "write", "log", "remove"}


def _stores(function: ast.AST | None) -> bool:
    """Whether a function's body may change something outside of it; True where its source is gone."""
    if function is None:
        return True
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            return True
        if isinstance(node, ast.Global | ast.Nonlocal | ast.Yield | ast.YieldFrom):
            return True
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in _MUTATORS or name in ("print", "setattr"):
                return True
    return False


def _is_read_later(function: ast.AST, statement: ast.stmt, name: str) -> bool:
    """Whether a name may be read after a statement gave it a value, on any path through the function."""
    if _escapes(function, name):
        return True
    node: ast.AST = statement
    while node is not function:
        parent = node.parent
        if isinstance(parent, ast.For | ast.While | ast.AsyncFor) and _reads(parent, name):
            return True  # in the next round, for all that is known
        if isinstance(parent, ast.Try | ast.TryStar) and _reads(function, name):
            return True
        for later in _behind(parent, node):
            if _reads(later, name):
                return True
            if isinstance(later, ast.Return | ast.Raise) or _overwrites(later, name):
                return False
            if isinstance(later, ast.Break | ast.Continue):
                break
        node = parent
    return False


def _escapes(function: ast.AST, name: str) -> bool:
    """Whether a name is read in ways that an ordinary look at the statements does not show."""
    for node in ast.walk(function):
        if isinstance(node, ast.Global | ast.Nonlocal) and name in node.names:
            return True
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Del):
            return True
        if isinstance(node, ast.Name) and node.id in ("locals", "vars", "eval", "exec"):
            return True
        closes_over = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef)
        if closes_over and node is not function and _reads(node, name):
            return True
    return False


def _behind(parent: ast.AST, node: ast.AST) -> list[ast.stmt]:
    """The statements that follow in the same block."""
    for _, block in ast.iter_fields(parent):
        if isinstance(block, list) and any(part is node for part in block):
            return block[next(i for i, part in enumerate(block) if part is node) + 1 :]
    return []


def _reads(node: ast.AST, name: str) -> bool:
    return any(
        (isinstance(part, ast.Name) and part.id == name and isinstance(part.ctx, ast.Load))
        or (isinstance(part, ast.AugAssign) and isinstance(part.target, ast.Name) and part.target.id == name)
        for part in ast.walk(node)
    )


def _overwrites(statement: ast.stmt, name: str) -> bool:
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return any(isinstance(part, ast.Name) and part.id == name for target in targets for part in ast.walk(target))


def _quote(scope: Scope, node: ast.AST) -> str:
    text = source_of(scope.code).text(node)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


# --------------------------------------------------------------------------------------------------------------------
# Flags that were not handed on

_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d"}
_BOOLS = ("True", "False")


def flags(trace) -> Iterator[Lint]:
    """Flags that a calling function had with another value, and a call left at their default."""
    for call in trace.calls:
        for item in call.walk():
            if isinstance(item, Op):
                yield from _flag_of_operation(item)
            elif item is not call and is_own(item):
                yield from _flags_of_call(item)


def _flags_of_call(scope: Scope) -> Iterator[Lint]:
    item = in_own_code(scope)
    node = expression_at(scope.parent.code, scope.lasti)
    for argument in scope.arguments:
        if not argument.default or argument.info not in _BOOLS or not isinstance(node, ast.Call) or item is None:
            continue
        holder, value = _holder(scope, (argument.name,))
        if value in (argument.info, "") or _is_passed(node, argument.name, scope):
            continue
        text = (
            f"{_title(scope)} ran with {argument.name}={argument.info}, its default, though {_title(holder)} had "
            f"{argument.name}={value}; hand it on: {argument.name}={argument.name}"
        )
        yield lint_at(item, "flag", text)


def _holder(item: Item, names: tuple[str, ...]) -> tuple[Scope | None, str]:
    """The nearest calling function with an argument of this name that is True or False, and that value."""
    scope = item.parent
    while scope is not None and scope.parent is not None:
        for argument in scope.arguments:
            if argument.name in names and argument.info in _BOOLS:
                return scope, argument.info
        scope = scope.parent
    return None, ""


def _is_passed(node: ast.Call, name: str, scope: Scope) -> bool:
    """Whether a call names a value for this argument, or may do so."""
    if any(keyword.arg in (name, None) for keyword in node.keywords):
        return True
    names = inspect.getargs(scope.code).args[bool(scope.owner) :]
    starred = any(isinstance(argument, ast.Starred) for argument in node.args)
    return starred or (name in names and len(node.args) > names.index(name))


def _flag_of_operation(op: Op) -> Iterator[Lint]:
    node = expression_at(op.parent.code, op.lasti)
    if not isinstance(node, ast.Call) or not is_own(op.parent) or any(keyword.arg is None for keyword in node.keywords):
        return
    given = {keyword.arg for keyword in node.keywords}
    if op.name in _DROPOUTS and "training" not in given and len(node.args) < 3 and _drops_in_eval(op):
        text = (
            f"`{_quote(op.parent, node)}` drops although the module is in eval mode, since training=True is its "
            "default; add training=self.training"
        )
        yield lint_at(op, "flag", text)
    if op.name == "scaled_dot_product_attention" and not {"is_causal", "attn_mask"} & given and len(node.args) == 3:
        holder, value = _holder(op, ("is_causal", "causal"))
        query, key = op.inputs()[:2]
        if value == "True" and query.shape[-2] == key.shape[-2]:
            text = (
                f"attention looks ahead: {_title(holder)} had causal=True, this call has no is_causal=True; hand it on"
            )
            yield lint_at(op, "flag", text)


def _drops_in_eval(op: Op) -> bool:
    scope = op.parent
    while scope is not None and scope.training is None:
        scope = scope.parent
    rate = op.kwargs.get("p", op.args[1] if len(op.args) > 1 else 0.5)
    return scope is not None and scope.training is False and op.kwargs.get("training", True) is True and rate != 0


def _title(scope: Scope) -> str:
    return f"{scope.owner}.{scope.function}" if scope.owner else f"{scope.function}()"
