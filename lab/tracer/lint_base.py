"""What a lint is, and where in one's own code something happened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lab.tracer.record import FOREIGN, Op, Scope
from lab.tracer.source import line_at, short_file

Item = Op | Scope


@dataclass(frozen=True)
class Lint:
    """Something that ran and yet looks like a mistake. `text` says what, and what to do about it."""

    kind: str
    text: str
    file: str
    line: int

    def __str__(self) -> str:
        return f"{short_file(self.file)}:{self.line}: {self.kind}: {self.text}"


def is_own(scope: Scope) -> bool:
    """Whether a call runs one's own code rather than a library's."""
    return not scope.code.co_filename.startswith(FOREIGN)


def scopes_of(trace) -> Iterator[Scope]:
    """All calls of one's own functions."""
    for call in trace.calls:
        for item in call.walk():
            if isinstance(item, Scope) and is_own(item):
                yield item


def in_own_code(item: Item) -> Item | None:
    """An operation or call, or the library call around it that stands in one's own code; None where there is none."""
    while item.parent is not None and item.parent.parent is not None and not is_own(item.parent):
        item = item.parent
    return item if item.parent is not None and item.parent.parent is not None else None


def lint_at(item: Item, kind: str, text: str) -> Lint:
    """A lint about an operation or call that stands in one's own code."""
    code = item.parent.code
    return Lint(kind, text, code.co_filename, line_at(code, item.lasti))
