"""What is shown of a recording: rows, at one of four levels, folded where they repeat, as text.

module   calls of modules
method   and of methods and functions
assign   and one row for each line of source that ran (default)
op       one row for each operation
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lab.tracer.cost import copied, flops, number
from lab.tracer.record import Op, Scope
from lab.tracer.source import expression_at, line_at, returned_names, source_of, statement_at, targets
from lab.tracer.values import Value, numbers, output_text, render, shape_text, tensors_in

LEVELS = ("module", "method", "assign", "op")
Item = Op | Scope


@dataclass
class Row:
    """One line of a trace, with the rows inside it."""

    label: str = ""  # of a scope: its name, class, parameters; of a line: the names assigned
    what: str = ""  # of a line: the operations, in the order of execution
    place: str = ""  # ":111"
    shapes: str = ""  # "(B,T,D) → (B,T,H·K)"
    extra: str = ""  # "262 kFLOP"
    is_scope: bool = False
    folded: bool = False  # its inner rows are not shown in the text
    items: list[Item] = field(default_factory=list)
    children: list[Row] = field(default_factory=list)

    def signature(self) -> tuple:
        """Equal for rows that look the same but for an index in the label (`layers.0`, `layers.1`)."""
        label = re.sub(r"\.\d+\b", ".#", self.label, count=1) if self.is_scope else self.label
        return (
            label, self.what, self.place, self.shapes, self.extra, self.is_scope,
            tuple(child.signature() for child in self.children),
        )  # fmt: skip

    def lines(self) -> int:
        """How many rows there are inside."""
        return sum(1 + child.lines() for child in self.children)


class View:
    """Turns scopes into rows. `params(path)` gives the parameter text of the module there, or nothing."""

    def __init__(self, level: str, params: Callable[[str], str], stats: bool = False, timing: bool = False):
        self.level, self.params = level, params
        self.stats, self.timing = stats, timing

    # ---- scopes

    def rows(self, calls: list[Scope]) -> list[Row]:
        """The rows of outermost calls."""
        rows = fold([self.scope_row(call, "") for call in calls])
        _hide_repeats(rows, set())
        return rows

    def scope_row(self, scope: Scope, names: str = "", parent: str = "") -> Row:
        label = self._scope_label(scope, parent) if scope.parent.parent is not None else _outermost_label(scope)
        row = Row(f"{names} = {label}" if names else label, is_scope=True, items=[scope])
        row.shapes = _scope_shapes(scope)
        row.extra = self._extra([scope], with_flops=False)
        row.children = self._inside(scope)
        row.folded = self._is_plain(scope, row)
        return row

    def _scope_label(self, scope: Scope, parent: str) -> str:
        if not scope.is_module:
            return f"{scope.function}()"
        name = _relative(scope.path, parent)
        parts = [self.params(scope.path), number(flops(scope), "FLOP") if flops(scope) else ""]
        title = f"{name}  {scope.owner}" if name else scope.owner
        return " · ".join([title, *filter(None, parts)])

    def _inside(self, scope: Scope) -> list[Row]:
        if self.level in ("module", "method"):
            kept = list(_scopes_below(scope, self.level == "module"))
            return fold([self.scope_row(child, parent=scope.path) for child in kept])
        rows: list[Row] = []
        for statement, items in _by_statement([c for c in scope.children if _worth_showing(c)]):
            rows += self._statement_rows(scope, statement, items)
        return fold(rows)

    def _is_plain(self, scope: Scope, row: Row) -> bool:
        """Small things that change no shape, such as norms, and things that make no tensor, are shown closed."""
        if scope.failed or self.level in ("module", "method"):
            return False
        outputs = list(tensors_in(scope.output))
        inputs = [v for argument in scope.arguments for v in tensors_in(argument.info)]
        if not outputs:
            return True
        same = len(inputs) == len(outputs) == 1 and inputs[0].shape == outputs[0].shape and not flops(scope)
        return same and row.lines() <= 4 and not any(child.is_scope for child in row.children)

    # ---- lines

    def _statement_rows(self, scope: Scope, statement: ast.stmt | None, items: list[Item]) -> list[Row]:
        rows, piece = [], []
        for item in items:
            inner = self.scope_row(item, parent=scope.path) if isinstance(item, Scope) and not _is_leaf(item) else None
            if inner is None or (inner.folded and self.level != "op"):
                piece.append((item, inner))
                continue
            rows += self._piece_rows(scope, statement, piece, items)
            piece = []
            inner.label = _with_names(inner.label, assigned(statement, [item], items))
            rows.append(inner)
        rows += self._piece_rows(scope, statement, piece, items)
        return _merge_calls(rows)

    def _piece_rows(self, scope: Scope, statement: Any, piece: list, items: list[Item]) -> list[Row]:
        """Rows for what a statement did between two calls that have rows of their own."""
        if not piece:
            return []
        if len(piece) == 1 and piece[0][1] is not None:
            row = piece[0][1]
            row.label = _with_names(row.label, assigned(statement, [piece[0][0]], items))
            return [row]
        if self.level == "op":
            return [self._line_row(scope, statement, [item], items) for item, _ in piece]
        return [self._line_row(scope, statement, [item for item, _ in piece], items)]

    def _line_row(self, scope: Scope, statement: Any, piece: list[Item], items: list[Item]) -> Row:
        row = Row(items=piece)
        row.label = assigned(statement, piece, items)
        if not row.label and isinstance(statement, ast.Return) and piece[-1] is items[-1]:
            row.label = "return"
        row.what = _names(piece)
        row.place = f":{statement.lineno if statement is not None else line_at(scope.code, piece[0].lasti)}"
        row.shapes = piece_shapes(piece)
        row.extra = self._extra(piece)
        return row

    def _extra(self, items: list[Item], with_flops: bool = True) -> str:
        count, seconds = sum(flops(item) for item in items), sum(item.seconds for item in items)
        parts = [number(count, "FLOP") if count and with_flops else ""]
        if self.level == "op" and isinstance(items[0], Op):
            parts.append({True: "copy", False: "view", None: ""}[copied(items[0])])
            parts.append(f"saves {number(items[0].saved, 'B')}" if items[0].saved else "")
        if self.timing:
            parts.append(f"{seconds * 1e3:.3g} ms")
        if self.stats:
            parts += [stats_text(value) for item in items[-1:] for value in outputs_of(item)[:1]]
        return "  ".join(filter(None, parts))


def _outermost_label(scope: Scope) -> str:
    """Its costs stand in the header already."""
    return scope.path or scope.owner if scope.is_module else f"{scope.function}()"


def _scopes_below(scope: Scope, modules_only: bool) -> Iterator[Scope]:
    for child in scope.children:
        if not isinstance(child, Scope) or child.owner == "Identity":
            continue
        if child.is_module or (not modules_only and _worth_showing(child)):
            yield child
        else:
            yield from _scopes_below(child, modules_only)


def _worth_showing(item: Item) -> bool:
    """Identity modules and functions in which no operation happened are left out."""
    if isinstance(item, Op):
        return True
    if item.owner == "Identity":
        return False
    return item.failed or item.is_module or any(isinstance(inner, Op) or inner.failed for inner in item.walk())


def _is_leaf(scope: Scope) -> bool:
    """A module of PyTorch's own with nothing but operations inside, such as Linear: shown like an operation."""
    return (
        scope.is_module
        and "/torch/nn/" in scope.code.co_filename.replace("\\", "/")
        and not any(isinstance(child, Scope) for child in scope.children)
    )


def _by_statement(items: list[Item]) -> list[tuple[ast.stmt | None, list[Item]]]:
    """Consecutive items of one statement. A loop's next round begins a new group."""
    groups: list[tuple[ast.stmt | None, list[Item]]] = []
    last = -1
    for item in items:
        code = item.parent.code
        statement = statement_at(code, item.lasti)
        again = item.lasti < last or (item.lasti == last and isinstance(item, Scope))
        if groups and groups[-1][0] is statement and statement is not None and not again:
            groups[-1][1].append(item)
        else:
            groups.append((statement, [item]))
        last = item.lasti
    return groups


def _merge_calls(rows: list[Row]) -> list[Row]:
    """Calls of one function in one statement, as in `q, k = rotate(q), rotate(k)`, share a closed row."""
    merged: list[Row] = []
    for row in rows:
        last = merged[-1] if merged else None
        same = (
            last is not None
            and row.is_scope
            and last.is_scope
            and isinstance(row.items[0], Scope)
            and isinstance(last.items[-1], Scope)
            and row.items[0].code is last.items[-1].code
            and not row.items[0].is_module
            and not row.items[0].failed
        )
        if not same:
            merged.append(row)
            continue
        last.items += row.items
        names = [r.label.split(" = ")[0] for r in (last, row) if " = " in r.label]
        call = row.label.split(" = ")[-1]
        last.label = f"{', '.join(names)} = {call}" if names else call
        last.shapes, last.folded = piece_shapes(last.items, first_only=True), True
    return merged


# --------------------------------------------------------------------------------------------------------------------
# Names and shapes of a row


def outputs_of(item: Item) -> list[Value]:
    return item.outputs() if isinstance(item, Op) else list(tensors_in(item.output))


def inputs_of(item: Item) -> list[Value]:
    if isinstance(item, Op):
        return item.inputs()
    return [value for argument in item.arguments for value in tensors_in(argument.info)]


def node_of(item: Item) -> ast.expr | None:
    """The expression that this operation or call evaluates, in the code of the scope around it."""
    return expression_at(item.parent.code, item.lasti)


def assigned(statement: ast.stmt | None, piece: list[Item], items: list[Item]) -> str:
    """The names that a part of a statement's operations gives values to: `q, k, v`."""
    wanted = targets(statement)
    if not wanted:
        return ""
    source = source_of(piece[0].parent.code)
    value = getattr(statement, "value", None)
    if isinstance(value, ast.Tuple) and len(value.elts) == len(wanted):
        nodes = [node_of(item) for item in piece]
        found = [t for t, part in zip(wanted, value.elts, strict=True) if any(node is part for node in nodes)]
    else:
        found = wanted if piece[-1] is items[-1] else []
    return ", ".join(_target_text(source, target) for target in found)


def _target_text(source: Any, target: ast.expr) -> str:
    if isinstance(target, ast.Subscript):
        return source.text(target.value) + "[…]"
    return source.text(target)


def _with_names(label: str, names: str) -> str:
    return f"{names} = {label}" if names else label


SYMBOLS = {
    "__add__": "+", "add": "+", "__radd__": "+", "__iadd__": "+=", "add_": "+=", "__sub__": "-", "sub": "-",
    "__rsub__": "-", "rsub": "-", "__isub__": "-=", "__mul__": "*", "mul": "*", "__rmul__": "*", "__imul__": "*=",
    "mul_": "*=", "__truediv__": "/", "div": "/", "true_divide": "/", "__rtruediv__": "/", "__matmul__": "@",
    "matmul": "@", "__rmatmul__": "@", "__pow__": "**", "pow": "**", "__rpow__": "**", "__neg__": "-", "neg": "-",
    "__getitem__": "[…]", "__setitem__": "[…]=", "scaled_dot_product_attention": "sdpa", "__eq__": "==",
    "eq": "==", "__ne__": "!=",
    "__lt__": "<", "lt": "<", "__le__": "<=", "le": "<=", "__gt__": ">", "gt": ">", "__ge__": ">=", "ge": ">=",
    "__and__": "&",
    "__or__": "|", "__invert__": "~", "bitwise_not": "~", "__floordiv__": "//", "floor_divide": "//", "__mod__": "%",
}  # fmt: skip


def op_name(item: Item) -> str:
    """`+`, `view`, `sdpa`; for a module its own name, `Wq`."""
    if isinstance(item, Op):
        return SYMBOLS.get(item.name, item.name.strip("_") if item.name.startswith("__") else item.name)
    if item.is_module:
        return item.path.rsplit(".", 1)[-1] or item.owner
    return f"{item.function}()"


def _names(piece: list[Item], width: int = 34) -> str:
    names: list[list] = []
    for item in piece:
        name = op_name(item)
        if names and names[-1][0] == name:
            names[-1][1] += 1
        else:
            names.append([name, 1])
    texts = [name if count == 1 else f"{name}×{count}" for name, count in names]
    while len(texts) > 2 and len(", ".join(texts)) > width:  # the ends say most
        texts = [*texts[: len(texts) // 2], "…", *texts[len(texts) // 2 + 1 + (texts[len(texts) // 2] == "…") :]]
        if texts.count("…") and len(texts) <= 3:
            break
    return ", ".join(texts)


def piece_shapes(piece: list[Item], first_only: bool = False) -> str:
    """`(B,T,D) → (B,T,H·K)`: what goes into some operations from outside, and what comes out of them at the end."""
    made: set[int] = set()
    used: set[int] = set()
    inputs: list[Value] = []
    for item in piece:
        wanted = inputs_of(item)[:1] if first_only else inputs_of(item)
        for value in wanted:
            if value.index in made:
                used.add(value.index)
            elif not value.weight and all(value is not known for known in inputs):
                inputs.append(value)
        made |= {value.index for value in outputs_of(item)}
    unique: dict[int, Value] = {}
    for item in piece:
        for value in outputs_of(item):
            if value.index not in used or item is piece[-1]:
                unique[value.index] = value
    return _arrow(_list(inputs), list(unique.values()), inputs)


def _arrow(left: str, outputs: list[Value], inputs: list[Value]) -> str:
    right = _list(outputs)
    if left == right and len(outputs) > 1:
        right = "same"
    new = [v for v in outputs if all(v.shape != w.shape for w in inputs)]
    if len(outputs) == 1 and new and len(new[0].shape or ()) > 1 and new[0].symbols is not None:
        right += f"  ={numbers(new[0])}"
    return " → ".join(filter(None, [left, right]))


def _list(values: list[Value]) -> str:
    texts = [shape_text(value) for value in values]
    if len(texts) > 3 and len(set(texts)) == 1:
        return f"{texts[0]} ×{len(texts)}"
    shown = texts if len(texts) <= 5 else [*texts[:4], f"… {len(texts) - 4} more"]
    return " ".join(shown)


def _scope_shapes(scope: Scope) -> str:
    given = [argument for argument in scope.arguments if not argument.default]
    lone = len(given) == 1 and isinstance(given[0].info, Value)
    left = render(given[0].info) if lone else "  ".join(_argument_text(argument) for argument in given)
    if scope.failed:
        return f"{left} → ✗"
    if scope.output is None:
        return left
    right = output_text(scope.output, returned_names(scope.code, scope.last_line))
    return f"{left} → {right}" if left else f"→ {right}"


def _argument_text(argument: Any) -> str:
    return (
        argument.name if not list(tensors_in(argument.info)) and not isinstance(argument.info, str) else argument.text()
    )


def _relative(path: str, parent: str) -> str:
    return path[len(parent) + 1 :] if parent and path.startswith(parent + ".") else path


def stats_text(value: Value) -> str:
    """`mean 0.01 std 1.2 min -3 max 4`, `2 nan`, `31 % zero`."""
    if not value.stats:
        return ""
    stats = dict(value.stats)
    text = [f"{stats.pop(name)} {name}" for name in ("nan", "inf") if stats.get(name)]
    text += [f"{name} {stats[name]:.3g}" for name in ("mean", "std", "min", "max") if name in stats]
    if stats.get("zeros", 0) > 0.005:
        text.append(f"{stats['zeros']:.0%} zero")
    return " ".join(text)


# --------------------------------------------------------------------------------------------------------------------
# Folding


def fold(rows: list[Row]) -> list[Row]:
    """Consecutive rows that look the same become one: `layers.0…9 ×10`."""
    groups: list[list[Row]] = []
    signatures: list[tuple] = []
    for row in rows:
        signature = row.signature()
        if groups and signature == signatures[-1]:
            groups[-1].append(row)
        else:
            groups.append([row])
            signatures.append(signature)
    return [_folded(group) for group in groups]


def _folded(group: list[Row]) -> Row:
    first, last = group[0], group[-1]
    if len(group) == 1:
        return first
    index = re.search(r"\.(\d+)\b", last.label)
    if first.is_scope and index and first.label != last.label:
        first.label = re.sub(r"\.(\d+)\b", rf".\g<1>…{index[1]} ×{len(group)}", first.label, count=1)
        first.label = first.label.replace(" params", " params each", 1)
    elif first.is_scope:
        first.label += f" ×{len(group)}"
    else:
        first.what += f" ×{len(group)}"
    first.items = [item for row in group for item in row.items]
    return first


def _hide_repeats(rows: list[Row], seen: set) -> None:
    """A function or block that was shown open once is closed the next time."""
    for row in rows:
        if not row.is_scope or not row.children:
            continue
        key = (row.items[0].code, tuple(child.signature() for child in row.children))
        if key in seen:
            row.folded = True
        elif not row.folded:
            seen.add(key)
            _hide_repeats(row.children, seen)


# --------------------------------------------------------------------------------------------------------------------
# Text


def text_lines(rows: list[Row], full: bool = False) -> list[str]:
    """The rows as aligned lines of text."""
    flat = list(_flat(rows, 0, full))
    if not flat:
        return []
    width = min(max(len(left) for left, *_ in flat), 60)
    place = max(len(where) for _, where, *_ in flat)
    shapes = min(max((len(text) for *_, text, extra in flat if extra), default=0), 56)
    return [
        f"{left:<{width}} {where:>{place}}   {text:<{shapes}}   {extra}".rstrip() for left, where, text, extra in flat
    ]


def _flat(rows: list[Row], depth: int, full: bool) -> Iterator[tuple[str, str, str, str]]:
    for row in rows:
        if row.is_scope:
            closed = row.folded and not full and row.children
            more = f"[{row.lines()} line{'s' if row.lines() != 1 else ''}]" if closed else ""
            yield "│ " * depth + "▸ " + row.label, row.place, row.shapes, "   ".join(filter(None, [row.extra, more]))
            if not closed:
                yield from _flat(row.children, depth + 1, full)
        else:
            yield "│ " * depth + f"  {row.label:<11} {row.what}", row.place, row.shapes, row.extra
