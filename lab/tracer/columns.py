"""Rows of a trace in aligned columns of characters: the layout that text and HTML share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lab.tracer.view import Row

MAX_NAMES, MAX_LEFT, MAX_SHAPES = 13, 64, 52  # widths of columns; what is longer pushes the rest of its line aside
MAX_SIZES = 72  # characters of shapes up to which their numbers are added


class Line(NamedTuple):
    """The parts of one line; joined together they are its text."""

    row: Row
    guide: str  # "│ │ "
    left: str  # "▸ x = layers.0…9 ×10  ResidualLayer", or "  q       Wq, unflatten"
    place: str
    shapes: str
    extra: str

    @property
    def text(self) -> str:
        return "".join(self[1:]).rstrip()


class Columns:
    """Lays out rows. `full`: what is closed is open. `spare`: with room for what is inside closed rows."""

    def __init__(self, rows: list[Row], full: bool = False, spare: bool = False):
        self.full = full
        flat = list(self._flat(rows, 0, full or spare))
        lines = [(row, depth) for row, depth in flat if not row.is_scope]
        names = (len(row.names) for row, _ in self._flat(rows, 0, full) if not row.is_scope)
        self.names = min(max(names, default=0), MAX_NAMES)
        self.place = max((len(row.place) for row, _ in lines), default=0)
        wide = [2 * depth + len(self._left(row)) + 2 + self.place for row, depth in lines]
        scopes = [
            2 * depth + len(self._left(row)) + (len(row.place) + 2 if row.place else 0)
            for row, depth in flat
            if row.is_scope
        ]
        self.left = max(max(wide, default=0), min(max(scopes, default=0), MAX_LEFT))
        self.shapes = min(max((len(_shapes(row)) for row, _ in flat if self._extra(row)), default=0), MAX_SHAPES)

    def _flat(self, rows: list[Row], depth: int, closed: bool) -> Iterator[tuple[Row, int]]:
        for row in rows:
            yield row, depth
            if closed or not row.folded:
                yield from self._flat(row.children, depth + 1, closed)

    def _left(self, row: Row) -> str:
        return f"▸ {row.label}" if row.is_scope else f"  {row.names:<{self.names}}  {row.label}"

    def _extra(self, row: Row) -> str:
        count = row.lines() if row.folded and not self.full else 0
        more = f"[{count} line{'s' if count > 1 else ''}]" if count else ""
        return "   ".join(filter(None, [row.extra, more]))

    def line(self, row: Row, depth: int) -> Line:
        """One row's line, at a depth in the tree."""
        guide, left, shapes, extra = "│ " * depth, self._left(row), _shapes(row), self._extra(row)
        used = len(guide) + len(left)
        gap = max(self.left - used, len(row.place) + 2 if row.place else 0)
        room = self.left + self.shapes - used - gap  # for the shapes, where what stands before them is too long
        padded = f"   {shapes:<{max(room, 0)}}   " if extra else f"   {shapes}"
        return Line(row, guide, left, row.place.rjust(gap), padded, extra)

    def lines(self, rows: list[Row]) -> Iterator[Line]:
        """The lines of the rows that are shown."""
        for row, depth in self._flat(rows, 0, self.full):
            yield self.line(row, depth)


def _shapes(row: Row) -> str:
    shapes = "  ".join(filter(None, [row.shapes, row.sizes]))
    return shapes if len(shapes) <= MAX_SIZES else row.shapes


def text_lines(rows: list[Row], full: bool = False) -> list[str]:
    """The rows as aligned lines of text. full=True opens what is shown closed."""
    return [line.text for line in Columns(rows, full).lines(rows)]
