"""From a place in compiled code to what stands there in the source: the expression, its operands, the name it gets.

Python keeps, for every instruction, the lines and columns of the expression it was compiled from (PEP 657). The syntax
tree of the file gives that expression its structure. Without the source (typed into a plain prompt) there is only a
line number, and every function here answers with None or an empty text.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import CodeType

Span = tuple[int, int, int, int]  # first line, last line (both from 1), first column, column behind the last (utf-8)


@dataclass
class Source:
    """A file or notebook cell, with its syntax tree by position."""

    file: str
    lines: list[str]
    tree: ast.Module | None
    statements: list[ast.stmt] = field(default_factory=list)
    functions: dict[tuple[str, int], ast.FunctionDef] = field(default_factory=dict)  # by name and first line

    def text(self, node: ast.AST) -> str:
        """The source of a node on one line."""
        lines = [line.encode() for line in self.lines[node.lineno - 1 : node.end_lineno]]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return " ".join(b"".join(lines).decode().split())


@lru_cache(maxsize=256)
def _parse(file: str, lines: tuple[str, ...]) -> Source:
    try:
        tree = ast.parse("".join(lines)) if lines else None
    except SyntaxError:  # the file was edited since, and is broken at this moment
        tree = None
    source = Source(file, list(lines), tree)
    if tree is not None:
        for node in ast.walk(tree):
            for child in ast.iter_child_nodes(node):
                child.parent = node
        source.statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
        for node in source.statements:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                source.functions[node.name, first] = node
    return source


def source_of(code: CodeType) -> Source:
    """The source file or cell that a code object was compiled from."""
    return read(code.co_filename)


def read(file: str) -> Source:
    """A file's source as Python's own tracebacks see it."""
    return _parse(file, tuple(linecache.getlines(file)))


@lru_cache(maxsize=4096)
def _positions(code: CodeType) -> tuple:
    return tuple(code.co_positions())


def span_at(code: CodeType, lasti: int) -> Span | None:
    """Where in the source the instruction at byte `lasti` comes from."""
    positions = _positions(code)
    if not 0 <= lasti // 2 < len(positions):
        return None
    line, end_line, column, end_column = positions[lasti // 2]
    return None if None in (line, end_line, column, end_column) else (line, end_line, column, end_column)


def line_at(code: CodeType, lasti: int) -> int:
    """The line of the instruction at byte `lasti`; the function's first line where that is not known."""
    positions = _positions(code)
    line = positions[lasti // 2][0] if 0 <= lasti // 2 < len(positions) else None
    return code.co_firstlineno if line is None else line


def _span(node: ast.AST) -> Span:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


@lru_cache(maxsize=65536)
def expression_at(code: CodeType, lasti: int) -> ast.expr | None:
    """The expression that the instruction at byte `lasti` evaluates."""
    span = span_at(code, lasti)
    statement = statement_at(code, lasti)
    if span is None or statement is None:
        return None
    found = [node for node in ast.walk(statement) if isinstance(node, ast.expr) and span in _spans(node)]
    return found[-1] if found else None


def _spans(node: ast.expr) -> list[Span]:
    """Where an expression's instructions say they come from: of a method on a line of its own, from its name on."""
    attribute = node.func if isinstance(node, ast.Call) else node
    if not isinstance(attribute, ast.Attribute) or attribute.lineno == attribute.end_lineno:
        return [_span(node)]
    column = attribute.end_col_offset - len(attribute.attr.encode())
    return [_span(node), (attribute.end_lineno, node.end_lineno, column, node.end_col_offset)]


@lru_cache(maxsize=65536)
def statement_at(code: CodeType, lasti: int) -> ast.stmt | None:
    """The innermost statement around the instruction at byte `lasti`."""
    span = span_at(code, lasti)
    if span is None:
        return None
    start, end = (span[0], span[2]), (span[1], span[3])
    best = None
    for node in source_of(code).statements:
        if (
            (node.lineno, node.col_offset) <= start
            and end <= (node.end_lineno, node.end_col_offset)
            and (best is None or (node.lineno, node.col_offset) >= (best.lineno, best.col_offset))
        ):
            best = node
    return best


def targets(statement: ast.stmt | None) -> list[ast.expr]:
    """What a statement assigns to, tuples taken apart: `q, k = ...` gives [q, k]; `return` and others give []."""
    if isinstance(statement, ast.AnnAssign | ast.AugAssign):
        return [statement.target]
    if not isinstance(statement, ast.Assign):
        return []
    first = statement.targets[0]
    return list(first.elts) if isinstance(first, ast.Tuple | ast.List) else [first]


def operands(node: ast.expr | None, is_module: Callable[[str], bool] = lambda name: False) -> list[ast.expr]:
    """The parts of an expression that may be tensors: both sides of `a + b`, a method's object, a call's arguments.

    `is_module` says of a name that it is an imported module's, so that `F` in `F.silu(x)` is not taken for an object.
    """
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    if isinstance(node, ast.Subscript):
        return [node.value]
    if isinstance(node, ast.AugAssign):
        return [node.target, node.value]
    if isinstance(node, ast.Call):
        owner = [node.func.value] if isinstance(node.func, ast.Attribute) else []
        if owner and is_module(ast.unparse(owner[0]).split(".")[0]):
            owner = []
        return owner + list(node.args) + [keyword.value for keyword in node.keywords]
    return []


def short_file(file: str) -> str:
    """`model.py`, or `cell` for a notebook's cell."""
    path = Path(file)
    return "cell" if "ipykernel" in path.parent.name or file.startswith("<ipython") else path.name


def function_node(code: CodeType) -> ast.FunctionDef | None:
    """The `def` of a code object."""
    return source_of(code).functions.get((code.co_name, code.co_firstlineno))


@lru_cache(maxsize=4096)
def returned_names(code: CodeType, line: int) -> list[str | None]:
    """Names for what the `return` at a line gives back: `return x` gives [x], `return q, k.transpose(1, 2)` [q, k]."""
    node = function_node(code)
    found = [n for n in ast.walk(node) if isinstance(n, ast.Return) and n.value] if node is not None else []
    found = [n for n in found if n.lineno <= line <= n.end_lineno]
    if not found:
        return []
    value = found[-1].value
    if isinstance(value, ast.Tuple):
        return [_base_name(part) for part in value.elts]
    return [value.id if isinstance(value, ast.Name) and value.id != "self" else None]


def _base_name(node: ast.expr) -> str | None:
    """`q` for q and for q.transpose(1, 2)."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    return node.id if isinstance(node, ast.Name) and node.id != "self" else None
