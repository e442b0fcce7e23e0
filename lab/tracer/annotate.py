"""A function's source with the shapes that were seen behind each line, and wrong shape comments marked."""

from __future__ import annotations

import ast
import functools
import html
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

from torch import nn

from lab.tracer.comments import Arrow, Comment, disagreements, docstring_arrow, hold, shape_comments
from lab.tracer.record import Scope
from lab.tracer.shapes import Seen, seen_text
from lab.tracer.source import Source, function_node, read, short_file, source_of
from lab.tracer.statements import Execution, executions, flat, passed, return_value, tree_of
from lab.tracer.values import Value, numbers, shape_text, tensors_in

MAX_SHAPES = 3  # different shapes of one name that are listed
MAX_WIDTH, HTML_WIDTH = 100, 72  # of source; behind longer lines shapes stand where these end

Tensors = list[tuple[str, list[Value]]]  # names and the tensors they got


class Annotated:
    """Source with shapes. `errors`: wrong shape comments; `checked`: (file, line) of all that were understood."""

    def __init__(self, trace: Any, codes: list[CodeType], fields: ast.ClassDef | None):
        self.errors: list[str] = []
        self.checked: set[tuple[str, int]] = set()
        self._codes, self._seen = codes, Seen(trace)
        self._lines: dict[tuple[str, int], dict[str, list[Value]]] = defaultdict(dict)
        self._wrong: dict[tuple[str, int], list[str]] = defaultdict(list)
        scopes = [s for call in trace.calls for s in call.walk() if isinstance(s, Scope)]
        for code in codes:
            reader = _Function(code, self._seen)
            for scope in (s for s in scopes if s.code is code):
                self._read(reader, scope)
        if fields is not None:
            self._read_fields(fields, scopes)

    # ---- reading

    def _read(self, reader: _Function, scope: Scope) -> None:
        for line, tensors in reader.shown(scope):
            for name, values in tensors:
                self._lines[reader.file, line].setdefault(name, []).extend(values)
        for comment, tensors in reader.commented(scope):
            self._note(reader.file, comment.line, disagreements(comment, tensors, scope, self._seen))
        if reader.arrow is not None:
            self._note(reader.file, reader.arrow.line, _docstring_errors(reader.arrow, scope, self._seen))

    def _read_fields(self, node: ast.ClassDef, scopes: list[Scope]) -> None:
        """A class's docstring speaks of its `forward`, comments behind a dataclass's fields of what is read of them."""
        file = self._codes[0].co_filename
        text = ast.get_docstring(node)
        arrow = docstring_arrow(text, node.body[0].lineno) if text else None
        for scope in scopes:
            if arrow is not None and scope.code in self._codes and scope.function == "forward":
                self._note(file, arrow.line, _docstring_errors(arrow, scope, self._seen))
            known = [name for name in self._seen.letters(scope) if name.islower()]
            for field, values in _fields_read(scope, node.name):
                line = next((n.lineno for n in node.body if _field_name(n) == field), 0)
                for comment in shape_comments(read(file).lines, line, line, known):
                    self._note(file, line, disagreements(comment, [(field, values)], scope, self._seen))

    def _note(self, file: str, line: int, wrong: list[str]) -> None:
        self.checked.add((file, line))
        for text in wrong:
            if text not in self._wrong[file, line]:
                self._wrong[file, line].append(text)
                self.errors.append(f"{short_file(file)}:{line}: {text}")

    # ---- showing

    def __str__(self) -> str:
        return "\n\n".join(self._text(code) for code in self._codes)

    __repr__ = __str__

    def _text(self, code: CodeType) -> str:
        rows = self._rows(code)
        width = max((len(line) for line, _, _ in rows if len(line) <= MAX_WIDTH), default=0)
        texts = []
        for line, shapes, wrong in rows:
            texts.append(f"{line:<{width}}  │ {shapes}" if shapes else line)
            texts += [f"{'':<{_margin(line)}}✗ {text}" for text in wrong]
        return "\n".join(texts)

    def _rows(self, code: CodeType) -> list[tuple[str, str, list[str]]]:
        """The lines of one function, moved to the left margin, each with its shapes and what is wrong about it."""
        source, node = source_of(code), function_node(code)
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        known: set[str] = set()
        rows = []
        for number in range(first, node.end_lineno + 1):
            key = (code.co_filename, number)
            shapes = [_shapes_text(name, values, known) for name, values in self._lines.get(key, {}).items()]
            line = source.lines[number - 1].rstrip("\n")[node.col_offset :]
            rows.append((line, ", ".join(shapes), self._wrong.get(key, [])))
        return rows

    def _repr_html_(self) -> str:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer

        blocks = []
        for code in self._codes:
            rows = self._rows(code)
            lexer, formatter = PythonLexer(stripnl=False), HtmlFormatter(noclasses=True, nowrap=True)
            shown = highlight("\n".join(line for line, _, _ in rows), lexer, formatter).rstrip("\n").split("\n")
            blocks.append("\n".join(_html_line(line, *row) for line, row in zip(shown, rows)))
        style = "padding: 8px; line-height: 1.35; font: 13px monospace; white-space: pre; overflow-x: auto"
        return f'<pre style="{style}">' + "\n\n".join(blocks) + "</pre>"


def _html_line(shown: str, plain: str, shapes: str, wrong: list[str]) -> str:
    """Colours stand in the text itself: a page made from the notebook keeps them."""
    if shapes:
        gap = " " * (max(HTML_WIDTH - len(plain), 0) + 2)
        shown += f'{gap}<span style="color: #0b7285; font-weight: bold">{html.escape(shapes)}</span>'
    for text in wrong:
        text = f"{'':<{_margin(plain)}}✗ {html.escape(text)}"
        shown += f'\n<span style="color: #c92a2a; font-weight: bold">{text}</span>'
    return shown


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip())


def _shapes_text(name: str, values: list[Value], known: set[str]) -> str:
    """`q (B,T,H,K) =(2,16,8,16)`: with numbers where a letter or formula is new. Several shapes: `(B,T,H,K) | …`."""
    texts = []
    for value in {shape_text(value): value for value in values}.values():
        new = {symbol for symbol in value.symbols or () if not symbol.isdigit()} - known
        known |= new
        texts.append(shape_text(value) + (f" ={numbers(value)}" if new else ""))
    more = [f"… {len(texts) - MAX_SHAPES} more"] if len(texts) > MAX_SHAPES else []
    return f"{name} {' | '.join(texts[:MAX_SHAPES] + more)}"


# --------------------------------------------------------------------------------------------------------------------
# What one function's lines gave


class _Function:
    """Reads one call after another of one function."""

    def __init__(self, code: CodeType, seen: Seen):
        self.code, self.file, self.seen = code, code.co_filename, seen
        self.node = function_node(code)
        self.source: Source = source_of(code)
        self.arrow: Arrow | None = None
        self._comments: dict[int, Comment] | None = None

    def _prepare(self, scope: Scope) -> dict[int, Comment]:
        """The comments by line. They may use the config's names of sizes, which the first call tells."""
        if self._comments is None:
            known = [name for name in self.seen.letters(scope) if name.islower()]
            found = shape_comments(self.source.lines, self.node.lineno, self.node.end_lineno, known)
            self._comments = {comment.line: comment for comment in found}
            text = ast.get_docstring(self.node)
            self.arrow = docstring_arrow(text, self.node.body[0].lineno, known) if text else None
        return self._comments

    def shown(self, scope: Scope) -> Iterator[tuple[int, Tensors]]:
        """What is shown behind the lines: of the `def` the arguments, of a statement what it assigns or returns."""
        self._prepare(scope)
        arguments = [(a.name, list(tensors_in(a.info))) for a in scope.arguments]
        yield self._def_line(), [pair for pair in arguments if pair[1]]
        for execution in executions(scope):
            given = self._assigned(execution)
            if given:
                yield self._end(execution.statement), given
        statement, values = return_value(scope)
        if statement is not None and values:
            yield self._end(statement), [("→", values)]

    def _def_line(self) -> int:
        """The line on which the signature ends."""
        ends = [n.end_lineno for n in (*self.node.args.args, *self.node.args.kwonlyargs, self.node.returns) if n]
        return max([self.node.lineno, *ends])

    @staticmethod
    def _end(statement: ast.stmt) -> int:
        """Where shapes are written: behind a plain statement, behind the head of one with a body."""
        body = getattr(statement, "body", None)
        return statement.lineno if body else statement.end_lineno

    def _assigned(self, execution: Execution) -> Tensors:
        if isinstance(execution.statement, ast.Return):
            return []
        return [(name, flat(tree)) for name, tree in execution.assigned() if flat(tree)]

    def commented(self, scope: Scope) -> Iterator[tuple[Comment, Tensors]]:
        """Each comment with the tensors it speaks of, as often as its line ran."""
        comments = self._prepare(scope)
        for argument in (*self.node.args.args, *self.node.args.kwonlyargs):
            found = [(a.name, list(tensors_in(a.info))) for a in scope.arguments if a.name == argument.arg]
            if argument.lineno in comments and argument.lineno != self.node.lineno and found and found[0][1]:
                yield comments[argument.lineno], found
        for execution in executions(scope):
            yield from self._in_statement(execution, comments)
        statement, values = return_value(scope)
        if statement is not None and values and statement.end_lineno in comments:
            yield comments[statement.end_lineno], [("what is returned", values)]

    def _in_statement(self, execution: Execution, comments: dict[int, Comment]) -> Iterator[tuple[Comment, Tensors]]:
        statement = execution.statement
        end = self._end(statement)
        for line in range(statement.lineno, end + 1):
            if line not in comments:
                continue
            inner = [] if line == end else _ending_on(line, execution)
            if inner:
                yield comments[line], inner
            elif line in (statement.lineno, end) and not isinstance(statement, ast.Return):
                given = self._assigned(execution) or [("it", flat(execution.last()))]
                yield comments[line], given


def _ending_on(line: int, execution: Execution) -> Tensors:
    """The tensors of the largest expressions that end on a line inside a statement, such as the links of a chain."""
    nodes = {node: values for item in execution.items for node, values in passed(item)}  # evaluated before
    nodes |= {node: flat(tree_of(item)) for node, item in execution.found.items()}
    ending = [(node, values) for node, values in nodes.items() if node.end_lineno == line and values]
    largest = [
        (node, values)
        for node, values in ending
        if not any(other is not node and _holds(other, node) for other, _ in ending)
    ]
    return [("it", values) for _, values in sorted(largest, key=lambda pair: pair[0].col_offset)]


def _holds(outer: ast.AST, inner: ast.AST) -> bool:
    return any(node is inner for node in ast.walk(outer))


# --------------------------------------------------------------------------------------------------------------------
# Docstrings and fields


def _docstring_errors(arrow: Arrow, scope: Scope, seen: Seen) -> list[str]:
    arguments = {a.name: [v for v in tensors_in(a.info) if v.shape is not None] for a in scope.arguments}
    in_order = [(name, values[0]) for name, values in arguments.items() if len(values) == 1]
    unnamed = iter(in_order)
    said = []
    for slot, names in arrow.inputs:
        named = [(slot, name, value) for name in names for value in arguments.get(name, [])]
        said += named or [(slot, *pair) for pair in [next(unnamed, None)] if pair is not None]
    outputs = [v for v in tensors_in(scope.output) if v.shape is not None]
    said += [(slot, "what is returned", value) for slot, value in zip(arrow.outputs, outputs)]
    bound, wrong = {}, []
    for slot, name, value in said:
        bound, fits = hold(slot, value, scope, seen, bound)
        if not fits:
            wrong.append(f"the docstring says {slot.text()}, but {name} is {seen_text(value)}")
    return wrong


def _field_name(node: ast.stmt) -> str | None:
    return node.target.id if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else None


def _fields_read(scope: Scope, cls: str) -> Iterator[tuple[str, list[Value]]]:
    """What operations and calls in a scope read from objects of a class: `self.x` in its methods, `ctx.x` elsewhere."""
    owners = _objects_of(scope.code, cls)
    for item in scope.children if owners else ():
        for part, values in passed(item):
            is_field = isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name)
            if is_field and part.value.id in owners and values:
                yield part.attr, values


@functools.lru_cache(maxsize=1024)
def _objects_of(code: CodeType, cls: str) -> frozenset[str]:
    """The arguments of a function that its annotations say are of a class, or `self` in the class's own methods."""
    node = function_node(code)
    if node is None:
        return frozenset()
    parent = getattr(node, "parent", None)
    own = [node.args.args[0].arg] if isinstance(parent, ast.ClassDef) and parent.name == cls and node.args.args else []
    said = [
        a.arg for a in node.args.args if a.annotation and cls in ast.unparse(a.annotation).replace("'", "").split(" | ")
    ]
    return frozenset(own + said)


# --------------------------------------------------------------------------------------------------------------------
# Which functions


def annotated(trace: Any, function: Callable | type) -> Annotated:
    """The source of a function, method or class (all its methods that ran) with the shapes seen in a trace.

    Raises ValueError if it did not run in this trace, TypeError for what has no Python code.
    """
    ran = {id(s.code): s.code for call in trace.calls for s in call.walk() if isinstance(s, Scope)}
    wanted = _codes_of(function)
    codes = [code for code in wanted if id(code) in ran and function_node(code) is not None]
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if not codes:
        others = sorted({code.co_qualname for code in ran.values() if function_node(code) is not None})
        raise ValueError(f"{name} did not run in this trace, or its source is gone; what ran: {', '.join(others)}")
    fields = getattr(function_node(codes[0]), "parent", None) if inspect.isclass(function) else None
    return Annotated(trace, codes, fields if isinstance(fields, ast.ClassDef) else None)


def _codes_of(function: Any) -> list[CodeType]:
    """The code of a function, or of the methods of a class in the order of the source."""
    if isinstance(function, nn.Module):
        function = type(function)
    if inspect.isclass(function):
        own = [cls for cls in function.__mro__ if not cls.__module__.startswith("torch.") and cls is not object]
        members = [
            getattr(member, "__func__", getattr(member, "fget", member)) for cls in own for member in vars(cls).values()
        ]
        return [inspect.unwrap(member).__code__ for member in members if inspect.isfunction(inspect.unwrap(member))]
    inner = inspect.unwrap(getattr(function, "__func__", function))
    if not inspect.isfunction(inner):
        raise TypeError(f"function={function!r}: give a Python function, a method such as MQA.forward, or a class")
    return [inner.__code__]
