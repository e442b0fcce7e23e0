"""What is shown of a recording: rows, at one of four levels, folded where they repeat, as text.

module   calls of modules
method   and of methods and functions
assign   and one row for each line of source that ran (default)
op       one row for each operation
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from lab.tracer.cost import copied, flops, number
from lab.tracer.frames import Argument
from lab.tracer.record import FOREIGN, Op, Scope
from lab.tracer.source import expression_at, line_at, returned_names, short_file, source_of, statement_at, targets
from lab.tracer.values import Group, Value, numbers, output_text, render, shape_text, tensors_in

LEVELS = ("module", "method", "assign", "op")
Item = Op | Scope


@dataclass
class Row:
    """One line of a trace, with the rows inside it."""

    name: str = ""  # of a scope: its path or function; of a line: the operations, in the order of execution
    names: str = ""  # the names that its result is assigned to, or "return"
    about: str = ""  # of a module: its class and parameters
    place: str = ""  # ":111", or a scope's file where it is another than that of the scope around it
    shapes: str = ""  # "(B,T,D) → (B,T,H·K)"
    sizes: str = ""  # "=(2,16,128)", where these shapes come up for the first time
    flops: int = 0
    memory: str = ""  # "view" or "copy", at level op
    extra: str = ""  # "262 kFLOP  copy  1.2 ms"
    is_scope: bool = False
    folded: bool = False  # its inner rows are not shown in the text
    items: list[Item] = field(default_factory=list)
    count: int = 1  # of rows that were folded into this one
    others: list[list[Item]] = field(default_factory=list)  # their items, and those of rows inside folded ones
    children: list[Row] = field(default_factory=list)

    @property
    def parts(self) -> tuple[str, str, str]:
        """The label's parts: `x = `, `layers.0…9 ×10`, `  ResidualLayer · 10,060 params each`."""
        names = f"{self.names} = " if self.is_scope and self.names else ""
        if self.count == 1:
            return names, self.name, f"  {self.about}" if self.about else ""
        about = self.about.replace(" params", " params each", 1)
        return names, f"{self.name} ×{self.count}", f"  {about}" if about else ""

    @property
    def label(self) -> str:
        """A scope's whole label; of a line `Wq, unflatten`."""
        return "".join(self.parts)

    def signature(self) -> tuple:
        """Equal for rows that look the same but for the indices in a path (`layers.0`, `layers.1`)."""
        name = _INDEX.sub("#", self.name) if self.is_scope else self.name
        return (
            name, self.names, self.about, self.place, self.shapes, self.flops, self.memory, self.count,
            _not_finite(self.items),
            tuple(child.signature() for child in self.children),
        )  # fmt: skip

    def lines(self) -> int:
        """How many rows there are inside."""
        return sum(1 + child.lines() for child in self.children)

    def walk(self, closed: bool = True) -> Iterator[Row]:
        """This row and those inside it; `closed`: also those that the text does not show."""
        yield self
        if closed or not self.folded:
            for child in self.children:
                yield from child.walk(closed)


class View:
    """Turns scopes into rows. `params(path)` gives the parameter text of the module there, or nothing.

    `only`: a pattern of module paths; of the calls, only the outermost scopes whose path fits it become rows.
    """

    def __init__(
        self,
        level: str,
        params: Callable[[str], str],
        stats: bool = False,
        timing: bool = False,
        only: str | None = None,
    ):
        self.level, self.params, self.only = level, params, only
        self.stats, self.timing = stats, timing

    # ---- scopes

    def rows(self, calls: list[Scope]) -> list[Row]:
        """The rows of outermost calls."""
        shown = calls if self.only is None else [scope for call in calls for scope in _matching(call, self.only)]
        rows = fold([self.scope_row(scope) for scope in shown])
        _hide_repeats(rows, set())
        _show_sizes(rows)
        for row in (inner for outer in rows for inner in outer.walk()):
            row.extra = self._extra(row)
        return rows

    def scope_row(self, scope: Scope, parent: Scope | None = None) -> Row:
        """The row of a scope, with those inside it. `parent`: the scope whose row it will stand in."""
        row = Row(is_scope=True, items=[scope], shapes=_scope_shapes(scope), flops=flops(scope))
        if not scope.is_module:
            row.name = scope.title() if parent is None and self.only is not None else f"{scope.function}()"
        elif parent is None and not scope.path:
            row.name = scope.owner
        else:
            row.name = _relative(scope.path, parent.path if parent is not None else "") or scope.owner
            row.about = " · ".join(filter(None, [scope.owner, self.params(scope.path)]))
        around = parent.code.co_filename if parent is not None else ""
        if scope.code.co_filename != around and not _is_foreign(scope):
            row.place = short_file(scope.code.co_filename)
        row.children = self._inside(scope)
        row.folded = self._is_plain(scope, row)
        return row

    def _inside(self, scope: Scope) -> list[Row]:
        if self.level in ("module", "method"):
            kept = list(_scopes_below(scope, self.level == "module"))
            return fold([self.scope_row(child, scope) for child in kept])
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
            inner = self.scope_row(item, scope) if isinstance(item, Scope) and not _is_leaf(item) else None
            if inner is None or (inner.folded and self.level != "op"):
                piece.append((item, inner))
                continue
            rows += self._piece_rows(scope, statement, piece, items)
            piece = []
            inner.names = assigned(statement, [item], items)
            rows.append(inner)
        rows += self._piece_rows(scope, statement, piece, items)
        return _merge_calls(rows)

    def _piece_rows(self, scope: Scope, statement: Any, piece: list, items: list[Item]) -> list[Row]:
        """Rows for what a statement did between two calls that have rows of their own."""
        if not piece:
            return []
        if len(piece) == 1 and piece[0][1] is not None:
            row = piece[0][1]
            row.names = assigned(statement, [piece[0][0]], items)
            return [row]
        if self.level == "op":
            return [self._line_row(scope, statement, [item], items) for item, _ in piece]
        return [self._line_row(scope, statement, [item for item, _ in piece], items)]

    def _line_row(self, scope: Scope, statement: Any, piece: list[Item], items: list[Item]) -> Row:
        row = Row(names=assigned(statement, piece, items), name=_names(piece), shapes=piece_shapes(piece), items=piece)
        if not row.names and isinstance(statement, ast.Return) and piece[-1] is items[-1]:
            row.names = "return"
        if not _is_foreign(scope):  # a line number in a file that is not named says nothing
            row.place = f":{statement.lineno if statement is not None else line_at(scope.code, piece[0].lasti)}"
        row.flops = sum(flops(item) for item in piece)
        if self.level == "op" and isinstance(piece[0], Op):
            row.memory = {True: "copy", False: "view", None: ""}[copied(piece[0])]
        return row

    def _extra(self, row: Row) -> str:
        """What a row cost. Of rows folded into one: what is the same in all, else the mean or the range."""
        groups = [row.items, *row.others]
        is_root = row.is_scope and row.items[0].parent.parent is None  # its costs stand in the header already
        parts = ["" if is_root or not row.flops else number(row.flops, "FLOP"), row.memory]
        if row.count > 1 and parts[0]:
            parts[0] += " each"
        if self.level == "op" and not row.is_scope:
            saved = groups[-1][0].saved  # the first layer also pays for what all share
            parts.append(f"saves {number(saved, 'B')}" if saved else "")
        if self.timing:
            seconds = sum(item.seconds for group in groups for item in group) / len(groups)
            parts.insert(0, f"{seconds * 1e3:9.3f} ms")
        if self.stats:
            parts.append(stats_text(*(value for group in groups for value in outputs_of(group[-1])[:1])))
        return "  ".join(filter(None, parts))


def _is_foreign(scope: Scope) -> bool:
    return scope.code.co_filename.startswith(FOREIGN)


# --------------------------------------------------------------------------------------------------------------------
# Only some modules


def _matching(scope: Scope, pattern: str) -> Iterator[Scope]:
    """The outermost scopes whose module's path fits the pattern."""
    if scope.owner and scope.owner != "Identity" and fnmatchcase(scope.path, pattern):
        yield scope
        return
    for child in scope.children:
        if isinstance(child, Scope):
            yield from _matching(child, pattern)


def no_match(pattern: str, calls: list[Scope]) -> str:
    """What to say where a pattern fits no module that ran, with the paths that come nearest."""
    ran = [item.path for call in calls for item in call.walk() if isinstance(item, Scope) and item.owner and item.path]
    paths = list(dict.fromkeys(ran))
    within = [path for path in paths if f".{pattern}." in f".{path}."]
    near = within or difflib.get_close_matches(pattern, paths, n=5, cutoff=0.4) or paths
    listed = ", ".join(sorted(near[:5], key=paths.index)) + (", …" if len(paths) > 5 else "")
    whole = f" (a pattern fits whole paths: only='*{pattern}*' would fit)" if within else ""
    return f"only={pattern!r} fits the path of no module that ran; there are {listed or 'none'}{whole}"


# --------------------------------------------------------------------------------------------------------------------
# Which rows there are


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
        if last is None or not _is_same_function(last, row):
            merged.append(row)
            continue
        last.items += row.items
        last.names = ", ".join(filter(None, [last.names, row.names]))
        last.shapes, last.flops, last.folded = piece_shapes(last.items, first_only=True), last.flops + row.flops, True
    return merged


def _is_same_function(last: Row, row: Row) -> bool:
    if not (last.is_scope and row.is_scope):
        return False
    before, item = last.items[-1], row.items[0]
    return item.code is before.code and not item.is_module and not item.failed


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
        name = item.path.rsplit(".", 1)[-1]
        return f"{name} {item.owner}" if name.isdigit() else name or item.owner
    return f"{item.function}()"


def _names(piece: list[Item], width: int = 30) -> str:
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
    inputs, outputs = piece_ends(piece, first_only)
    left, right = shapes_text(inputs), "✗" if piece[-1].failed else shapes_text(outputs)
    if len(left) + len(right) > 44:
        left, right = shapes_text(inputs, 2), "✗" if piece[-1].failed else shapes_text(outputs, 2)
    if left == right and len(outputs) > 1:
        right = "same"
    return " → ".join(filter(None, [left, right]))


def piece_ends(piece: list[Item], first_only: bool = False) -> tuple[list[Value], list[Value]]:
    """The tensors that go into some operations from outside, and those that are left over at the end."""
    made: set[int] = set()
    used: set[int] = set()
    inputs: list[Value] = []
    for item in piece:
        taken, given = _ends(item)
        for value in taken[:1] if first_only else taken:
            if value.index in made:
                used.add(value.index)
            elif not value.weight and all(value is not known for known in inputs):
                inputs.append(value)
        made |= {value.index for value in given}
    unique: dict[int, Value] = {}
    for item in piece:
        for value in _ends(item)[1]:
            if value.index not in used or item is piece[-1]:
                unique[value.index] = value
    return inputs, list(unique.values())


def row_ends(row: Row) -> tuple[list[Value], list[Value]]:
    """The tensors that a row takes, and those it gives."""
    return piece_ends(row.items, first_only=row.is_scope) if len(row.items) > 1 else _ends(row.items[0])


def _ends(item: Item) -> tuple[list[Value], list[Value]]:
    if isinstance(item, Op) and item.name == "__setitem__":  # x[i] = y: what is written into stands on the right
        values = inputs_of(item)
        return values[1:], values[:1]
    return inputs_of(item), outputs_of(item)


def shapes_text(values: list[Value], repeats: int = 4) -> str:
    """Shapes in a row; as many equal ones as `repeats` become one with their number."""
    texts: list[list] = []
    for text in map(shape_text, values):
        if texts and texts[-1][0] == text:
            texts[-1][1] += 1
        else:
            texts.append([text, 1])
    shown = [" ".join([text] * count) if count < repeats else f"{text}×{count}" for text, count in texts]
    return " ".join(shown if len(shown) <= 5 else [*shown[:4], f"… {len(shown) - 4} more"])


MAX_SCOPE = 54  # characters: above it a call's shapes are written more briefly


def _scope_shapes(scope: Scope) -> str:
    given = [argument for argument in scope.arguments if not argument.default and argument.name != "self"]
    right = _output(scope)
    for left in _arguments(given):
        if len(left) + 3 + len(right) <= MAX_SCOPE:
            break
    else:
        right = shapes_text(list(tensors_in(scope.output)), 2) if len(right) > MAX_SCOPE else right
    return " → ".join([left, right]) if left and right else f"→ {right}" if right else left


def _arguments(given: list[Argument]) -> Iterator[str]:
    """Ways to write the arguments of a call, each more brief than the one before."""
    shown = [argument for argument in given if isinstance(argument.info, str) or any(tensors_in(argument.info))]
    for kept in (given, shown):
        lone = len(kept) == 1 and isinstance(kept[0].info, Value)
        yield render(kept[0].info) if lone else "  ".join(a.text() if a in shown else a.name for a in kept)
    plain = [argument.text() for argument in shown if isinstance(argument.info, str)]
    tensors = [value for argument in given for value in tensors_in(argument.info)]
    yield "  ".join(filter(None, [shapes_text(tensors, 2), *plain]))


def _output(scope: Scope) -> str:
    if scope.failed:
        return "✗"
    if scope.output is None:
        return ""
    names = returned_names(scope.code, scope.last_line) if isinstance(scope.output, Group) else []
    distinct = len(set(names)) == len(names) > 1 and not _is_foreign(scope)
    return output_text(scope.output, names if distinct else [])


def _relative(path: str, parent: str) -> str:
    return path[len(parent) + 1 :] if parent and path.startswith(parent + ".") else path


def letters_in(rows: list[Row]) -> set[str]:
    """The words in the shapes that the text shows, letters for dimensions among them."""
    shown = (row.shapes for outer in rows for row in outer.walk(closed=False))
    return {word for shapes in shown for word in re.findall(r"[^\W\d]\w*", shapes)}


# --------------------------------------------------------------------------------------------------------------------
# Statistics


def stats_text(*values: Value) -> str:
    """`mean 0.01 std 1.2 min -3 max 4`, `2 nan`, `31% zero`; of several tensors ranges: `std 0.9…3.1`."""
    found = [value.stats for value in values if value.stats]
    if not found:
        return ""
    totals = {name: sum(stats.get(name, 0) for stats in found) for name in ("nan", "inf")}
    text = [f"{total:.0f} {name}" for name, total in totals.items() if total]
    for name in ("mean", "std", "min", "max"):
        numbers_ = [stats[name] for stats in found if name in stats]
        ends = list(dict.fromkeys(f"{end:.3g}" for end in (min(numbers_), max(numbers_)))) if numbers_ else []
        if ends:
            text.append(f"{name} {ends[-1] if name == 'max' else ends[0] if name == 'min' else '…'.join(ends)}")
    zeros = sum(stats.get("zeros", 0) for stats in found) / len(found)
    if zeros == 1:
        return "all zero"
    return " ".join(text + ([f"{zeros:.0%} zero"] if zeros > 0.005 else []))


def _not_finite(items: list[Item]) -> bool:
    """Whether a row's result holds nan or inf: such a row is not folded with others."""
    stats = [value.stats for value in outputs_of(items[-1])[:1] if value.stats]
    return any(found.get("nan") or found.get("inf") for found in stats)


# --------------------------------------------------------------------------------------------------------------------
# Folding

_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a path that is a number


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
    if first.is_scope and first.name != last.name:
        parts = zip(first.name.split("."), last.name.split("."), strict=True)
        first.name = ".".join(a if a == b else f"{a}…{b}" for a, b in parts)
    first.count = sum(row.count for row in group)
    for row in group[1:]:
        _absorb(first, row)
    return first


def _absorb(row: Row, other: Row) -> None:
    row.others += [other.items, *other.others]
    for mine, theirs in zip(row.children, other.children, strict=True):
        _absorb(mine, theirs)


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


def _show_sizes(rows: list[Row]) -> None:
    """Writes numbers beside shapes that come up for the first time: first in the rows that the text shows."""
    seen: set[tuple] = set()
    shown = [row for outer in rows for row in outer.walk(closed=False)]
    visible = {id(row) for row in shown}
    rest = [row for outer in rows for row in outer.walk() if id(row) not in visible]
    for row in shown + rest:
        if not row.is_scope or not row.children:
            row.sizes = _new_sizes(row, seen)
    if len(rows) > 1:  # several calls: their numbers tell them apart
        for row in rows:
            row.sizes = row.sizes or _new_sizes(row, set())


def _new_sizes(row: Row, seen: set[tuple]) -> str:
    taken, given = row_ends(row)
    seen.update(value.symbols for value in taken)
    new = {
        value.symbols: numbers(value)
        for value in given
        if value.symbols not in seen and value.symbols and tuple(map(str, value.shape)) != value.symbols
    }
    seen.update(new)
    return "=" + " ".join(new.values()) if len(new) in (1, 2) else ""
