"""What each statement of a function gave each time it ran: its operations and calls, and the tensors it assigned."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from lab.tracer.record import Op, Scope
from lab.tracer.source import expression_at, function_node, operands, source_of, statement_at, targets
from lab.tracer.values import Group, Info, Value

Item = Op | Scope
Tree = Value | list | None  # a tensor, several in a container, or something else


@dataclass
class Execution:
    """One run of one statement. `found`: of each expression in it that torch or a call evaluated, the last result."""

    scope: Scope
    statement: ast.stmt
    items: list[Item] = field(default_factory=list)
    found: dict[ast.AST, Item] = field(default_factory=dict)

    def add(self, item: Item) -> None:
        self.items.append(item)
        node = expression_at(item.parent.code, item.lasti)
        if node is not None:
            self.found[node] = item

    def assigned(self) -> list[tuple[str, Tree]]:
        """The names (`q`, `self.state`, `rows[…]`) that the statement assigns to, with the tensors they got."""
        wanted = targets(self.statement)
        if isinstance(self.statement, ast.AugAssign):
            return [(target_text(self.scope, wanted[0]), self.last())]
        value = getattr(self.statement, "value", None)
        if not wanted or value is None:
            return []
        unpacks = isinstance(self.statement, ast.Assign) and isinstance(self.statement.targets[0], ast.Tuple | ast.List)
        parts = self._unpacked(value, len(wanted)) if unpacks else [self.value(value)]
        return [(target_text(self.scope, target), part) for target, part in zip(wanted, parts)]

    def _unpacked(self, value: ast.expr, count: int) -> list[Tree]:
        tree = self.value(value)
        if tree is None:  # a generator that runs while it is unpacked, or a tensor that is taken apart
            tree = self.leaves()
        return tree if isinstance(tree, list) and len(tree) >= count else []

    def value(self, node: ast.expr) -> Tree:
        """The tensors that an expression gave, as far as that is known; a bare name has been evaluated elsewhere."""
        if isinstance(node, ast.Tuple | ast.List):
            return [self.value(part) for part in node.elts]
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) or _is_collection(node):
            return self.leaves()
        if node in self.found:
            return tree_of(self.found[node])
        if isinstance(node, ast.IfExp):
            branches = [self.value(node.body), self.value(node.orelse)]
            return next((branch for branch in branches if branch is not None), None)
        if isinstance(node, ast.Starred | ast.Await | ast.NamedExpr):
            return self.value(node.value)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            whole, index = self.value(node.value), node.slice.value
            inside = isinstance(whole, list) and isinstance(index, int) and -len(whole) <= index < len(whole)
            return whole[index] if inside else None
        return None

    def last(self) -> Tree:
        """What the last operation of the statement gave."""
        return tree_of(self.items[-1]) if self.items else None

    def leaves(self) -> list[Value]:
        """The tensors that were made by the statement and not used up inside it."""
        made = [value for item in self.items for value in flat(tree_of(item))]
        used = {index for item in self.items for index in _indices(given_to(item)) - _indices(flat(tree_of(item)))}
        return list({value.index: value for value in made if value.index not in used}.values())


def _is_collection(node: ast.expr) -> bool:
    """`tuple(f(x) for x in xs)` and the like."""
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1
    return is_call and node.func.id in ("tuple", "list", "set") and isinstance(node.args[0], ast.GeneratorExp)


def tree_of(item: Item) -> Tree:
    """What an operation or call returned."""
    return _tree(item.output)


def _tree(output: Info | tuple | list | None) -> Tree:
    if isinstance(output, Value):
        return output
    if isinstance(output, Group):
        return [_tree(part) for _, part in output.items]
    return [_tree(part) for part in output] if isinstance(output, tuple | list) else None


def flat(tree: Tree) -> list[Value]:
    """All tensors of a tree, in order."""
    if isinstance(tree, list):
        return [value for part in tree for value in flat(part)]
    return [tree] if isinstance(tree, Value) else []


def given_to(item: Item) -> list[Value]:
    """The tensors among the arguments of an operation or call."""
    return item.inputs() if isinstance(item, Op) else [v for a in item.arguments for v in flat(_tree(a.info))]


def _indices(values: list[Value]) -> set[int]:
    return {value.index for value in values}


def passed(item: Item) -> Iterator[tuple[ast.expr, list[Value]]]:
    """The expressions that an operation or call was given, as far as they can be told, each with its tensors."""
    node = expression_at(item.parent.code, item.lasti)
    if isinstance(item, Scope):
        given = {argument.name: flat(_tree(argument.info)) for argument in item.arguments}
        if isinstance(node, ast.Call):
            yield from zip(node.args, given.values())
            yield from ((keyword.value, given.get(keyword.arg, [])) for keyword in node.keywords)
        return
    parts, values = operands(node), [*item.args, *item.kwargs.values()]
    if isinstance(node, ast.BinOp) and item.name.startswith("__r"):
        values.reverse()
    if isinstance(node, ast.Call) and len(parts) == len(values) + 1:  # the first one is `torch` in torch.cat(...)
        parts = parts[1:]
    if not isinstance(node, ast.Call) or len(parts) == len(values):
        for part, value in zip(parts, values):
            yield part, flat(_tree(value))
            if isinstance(part, ast.Tuple | ast.List) and isinstance(value, tuple) and len(part.elts) == len(value):
                yield from ((inner, flat(_tree(one))) for inner, one in zip(part.elts, value))


def target_text(scope: Scope, target: ast.expr) -> str:
    source = source_of(scope.code)
    return source.text(target.value) + "[…]" if isinstance(target, ast.Subscript) else source.text(target)


def executions(scope: Scope) -> Iterator[Execution]:
    """The statements of one call that did something with tensors, in the order of execution, each time they ran."""
    current, last = None, None
    for item in scope.children:
        statement = statement_at(scope.code, item.lasti)
        if statement is None:
            continue
        if current is None or statement is not current.statement or _begins_anew(current, item, last):
            if current is not None:
                yield current
            current = Execution(scope, statement)
        current.add(item)
        last = item
    if current is not None:
        yield current


def _begins_anew(current: Execution, item: Item, last: Item) -> bool:
    """Whether a loop has come back to the same statement. A single instruction may do several things (a generator)."""
    if item.lasti != last.lasti:
        return item.lasti < last.lasti
    node = expression_at(item.parent.code, item.lasti)
    if node is None or any(isinstance(n, ast.GeneratorExp | ast.ListComp) for n in ast.walk(current.statement)):
        return False
    if isinstance(item, Scope) or not isinstance(node, ast.Call):
        return True
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return called == item.name  # a foreign function (einops) makes operations of other names


def return_value(scope: Scope) -> tuple[ast.Return | None, list[Value]]:
    """The `return` that a call ended with, and the tensors it gave back."""
    node = function_node(scope.code)
    if node is None or scope.failed:
        return None, []
    found = [n for n in ast.walk(node) if isinstance(n, ast.Return) and n.lineno <= scope.last_line <= n.end_lineno]
    return (found[-1] if found else None), flat(_tree(scope.output))
