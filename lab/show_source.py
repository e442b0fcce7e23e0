"""`show_source`: the real code of a class or function, highlighted in a notebook."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from typing import Any


def show_source(obj: Any, docstring: bool = True) -> None:
    """Show the source of a class, function, method or module: highlighted in a notebook, plain in a terminal.

    obj: a class, a function or method, or an object, whose class is then shown. docstring=False leaves the
    docstrings out. Raises TypeError where there is no Python source (builtins, compiled code).
    """
    source = _source_of(obj)
    if not docstring:
        source = _without_docstrings(source)
    if not _in_notebook():
        print(source)
        return
    from IPython.display import display
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    # Colours stand in the text itself: no style sheet with every output, and a page made from the notebook keeps them.
    style = "padding: 8px; line-height: 1.35; font-family: monospace; font-size: 13px"
    html = highlight(source, PythonLexer(), HtmlFormatter(noclasses=True, prestyles=style))
    display({"text/html": html, "text/plain": source}, raw=True)


def _source_of(obj: Any) -> str:
    if isinstance(obj, property):
        obj = obj.fget
    if isinstance(obj, functools.partial):
        obj = obj.func
    named = inspect.isclass(obj) or inspect.isroutine(obj) or inspect.ismodule(obj)
    target = inspect.unwrap(obj) if named else type(obj)
    try:
        return textwrap.dedent(inspect.getsource(target)).rstrip()
    except (TypeError, OSError) as error:
        name = getattr(target, "__qualname__", repr(target))
        raise TypeError(
            f"obj={name}: no Python source to show (it is built in, compiled, or was typed into a plain prompt); "
            f"give a class, function or method that is defined in a .py file or a notebook cell"
        ) from error


def _without_docstrings(source: str) -> str:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Module)
        if documented and len(node.body) > 1 and ast.get_docstring(node) is not None:
            first, last = node.body[0].lineno, node.body[0].end_lineno
            while last < len(lines) and not lines[last].strip():  # and the blank lines below it
                last += 1
            lines[first - 1 : last] = [None] * (last - first + 1)
    return "\n".join(line for line in lines if line is not None)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"
