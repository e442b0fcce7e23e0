"""Two traces laid beside each other: what differs (`diff`), or both in full (`diff(a, b, side_by_side=True)`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from lab.tracer.cost import flops, number, saved_bytes
from lab.tracer.record import Scope
from lab.tracer.values import Value, numbers
from lab.tracer.view import Row, row_ends, shapes_text

MARKS = {"same": " ", "changed": "~", "removed": "-", "added": "+"}
MAX_LEFT, MAX_SHAPES = 66, 50  # widths of columns


@dataclass
class Change:
    """A row of one trace and the one in its place in the other; None where there is none."""

    kind: str  # "same", "changed", "removed" or "added"
    depth: int
    old: Row | None
    new: Row | None
    costs: list[str] = field(default_factory=list)  # "768 → 1,536 params": those that differ

    @property
    def label(self) -> str:
        """As the row is called in both; where that differs, `attn_norm  RMSNorm → LayerNorm`."""
        rows = [row for row in (self.old, self.new) if row is not None]
        title, owner = (" → ".join(dict.fromkeys(texts)) for texts in zip(*map(_title, rows), strict=True))
        return _names(rows[-1]) + title + (f"  {owner}" if owner else "")


class Diff:
    """What `diff` returns. `rows` holds what it shows, as a list of `Change`."""

    def __init__(self, a: Any, b: Any, side_by_side: bool = False):
        for name, trace in (("a", a), ("b", b)):
            if not trace.calls:
                raise ValueError(f"{name} recorded nothing: call the model inside its `with trace(...)` block")
        self.a, self.b, self.side_by_side = a, b, side_by_side
        self.stretched = [name for name in "BTS" if len({_sizes(trace).get(name) for trace in (a, b)}) > 1]
        level = a.level if side_by_side or a.level in ("module", "method") else "op"
        pairs = list(_pairs(a.rows(level), b.rows(level), 0))
        changes = [self._change(old, new, depth) for old, new, depth in pairs]
        self.rows = _shown(changes) if side_by_side else _only_changes(changes)

    def __str__(self) -> str:
        return "\n".join(text for _, text in self._lines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from lab.tracer.html import block

        letters = dict.fromkeys(name for trace in (self.a, self.b) for namer in trace.namers for name in namer.vectors)
        return block(self._lines(), letters)

    # ---- what differs

    def _change(self, old: Row | None, new: Row | None, depth: int) -> Change:
        before, after = _cost(self.a, old), _cost(self.b, new)
        if old is None or new is None:
            costs = [_amount(name, count) for name, count in (after or before).items() if count]
            return Change("added" if old is None else "removed", depth, old, new, costs)
        other = [name for name in before if _amount(name, before[name]) != _amount(name, after[name])]
        costs = [_from_to(name, before[name], after[name]) for name in other]
        change = Change("same", depth, old, new, costs)
        telling = [name for name in other if name == "params" or (not self.stretched and self._tells(name, old))]
        if telling or not _same_symbols(old, new) or _title(old) != _title(new):
            change.kind = "changed"
        return change

    def _tells(self, name: str, row: Row) -> bool:
        """Of single operations, bytes follow from sizes: they are told of calls, and with other differences."""
        return name == "FLOP" or row.is_scope

    # ---- text

    def _lines(self) -> Iterator[tuple[str, str]]:
        """(kind, text) of each line."""
        yield "head", self.totals()
        yield from (("head", line) for line in self._legend())
        if not self.side_by_side and not self.rows:
            yield "head", "no difference" + (" in symbols" if self.stretched else "")
            return
        yield from self._columns() if self.side_by_side else self._changes()

    def totals(self) -> str:
        """Parameters, FLOPs and bytes saved for backward of both traces."""
        sums = [
            {
                "params": trace.params.total(),
                "FLOP": sum(map(flops, trace.calls)),
                "bytes": sum(map(saved_bytes, trace.calls)),
            }
            for trace in (self.a, self.b)
        ]
        names = " → ".join(dict.fromkeys(trace.calls[0].owner or trace.calls[0].function for trace in (self.a, self.b)))
        texts = [_from_to(name, before, sums[1][name]) for name, before in sums[0].items()]
        return f"{names}   {' · '.join(texts)} for backward"

    def _legend(self) -> Iterator[str]:
        before, after = _sizes(self.a), _sizes(self.b)
        names = list(dict.fromkeys([*before, *after]))
        equal = " ".join(f"{name}={before[name]}" for name in names if before.get(name) == after.get(name))
        other = [f"{n} {before.get(n, '–')} → {after.get(n, '–')}" for n in names if before.get(n) != after.get(n)]
        if equal or other:
            yield "sizes: " + "   ".join(filter(None, [", ".join(other), f"{equal} in both" if equal else ""]))
        if self.stretched and not self.side_by_side:
            yield f"inputs differ in {', '.join(self.stretched)}: what changes FLOPs or bytes alone is not listed"

    def _changes(self) -> Iterator[tuple[str, str]]:
        cells = [cell for change in self.rows for cell in _cells(change)]
        left = min(max(len(cell[1]) for cell in cells), MAX_LEFT)
        middle = min(max((len(cell[2]) for cell in cells if cell[3]), default=0), MAX_SHAPES)
        for kind, label, shapes, costs in cells:
            yield kind, f"{MARKS[kind]} {label:<{left}}   {shapes:<{middle}}   {costs}".rstrip()

    def _columns(self) -> Iterator[tuple[str, str]]:
        cells = [("│ " * c.depth + c.label, _result(c.old), _result(c.new)) for c in self.rows]
        heads = [_head(self.a), _head(self.b)]
        left = min(max(len(text) for text, _, _ in cells), MAX_LEFT)
        middle = max(min(max(len(result) for _, result, _ in cells), MAX_SHAPES), len(heads[0]))
        yield "head", f"  {'':<{left}}   {heads[0]:<{middle}}   {heads[1]}"
        for change, (text, old, new) in zip(self.rows, cells, strict=True):
            kind = change.kind if change.kind in ("added", "removed") else "same"
            yield kind, f"{MARKS[kind]} {text:<{left}}   {old:<{middle}}   {new}".rstrip()


def diff(a: Any, b: Any, side_by_side: bool = False) -> Diff:
    """Compares two traces: `-` and `+` mark what only the first or the second does, `~` what costs something else.

    What is equal in symbols, parameters and FLOPs is hidden, whatever the numbers: with 8 heads or with 16, the shape
    is (B,H,T,K). side_by_side=True shows everything instead, common rows once, with the results of both: training
    beside decoding, say.
    """
    return Diff(a, b, side_by_side)


# --------------------------------------------------------------------------------------------------------------------
# Which row stands for which


def _pairs(old: list[Row], new: list[Row], depth: int) -> Iterator[tuple[Row | None, Row | None, int]]:
    """Rows that stand for each other, parents before children."""
    for a, b in _aligned(old, new, whole=depth == 0 and len(old) == len(new) == 1):
        yield a, b, depth
        yield from _pairs(a.children if a else [], b.children if b else [], depth + 1)


def _aligned(old: list[Row], new: list[Row], whole: bool) -> Iterator[tuple[Row | None, Row | None]]:
    if whole:  # one call each: they are what was asked to be compared, whatever their names
        yield old[0], new[0]
        return
    matcher = SequenceMatcher(None, [_key(row) for row in old], [_key(row) for row in new], autojunk=False)
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag == "equal":
            yield from zip(old[i:i_end], new[j:j_end], strict=True)
        else:
            yield from _loosely(old[i:i_end], new[j:j_end])


def _loosely(old: list[Row], new: list[Row]) -> Iterator[tuple[Row | None, Row | None]]:
    """Of rows that do not match: lines that assign to the same name stand for each other."""
    rest = list(new)
    for row in old:
        twin = next((other for other in rest if not row.is_scope and row.names and row.names == other.names), None)
        if twin is None:
            yield row, None
            continue
        for passed in rest[: rest.index(twin)]:
            yield None, passed
        rest = rest[rest.index(twin) + 1 :]
        yield row, twin
    yield from ((None, row) for row in rest)


def _key(row: Row) -> tuple:
    """Path, method and operation."""
    return row.is_scope, re.sub(r"\d+(…\d+)?", "#", row.name) if row.is_scope else row.name


def _only_changes(changes: list[Change]) -> list[Change]:
    """What differs, and the rows around it, so that one sees where. What stands inside an added row is not listed."""
    kept: list[Change] = []
    depth = 0  # of the row that was kept last: what stands before it and less deep is around it
    for change in reversed(changes):
        if change.kind != "same" or change.depth < depth:
            kept.append(change)
            depth = change.depth
    return _without(reversed(kept), lambda change: change.kind in ("added", "removed"))


def _shown(changes: list[Change]) -> list[Change]:
    """What the texts of the traces show: nothing that stands inside closed rows."""
    return _without(changes, lambda change: all(row is None or row.folded for row in (change.old, change.new)))


def _without(changes: Iterable[Change], closed: Callable[[Change], bool]) -> list[Change]:
    """The changes without those inside a closed one."""
    shown: list[Change] = []
    outer: Change | None = None
    for change in changes:
        if outer is not None and change.depth > outer.depth:
            continue
        outer = change if closed(change) else None
        shown.append(change)
    return shown


# --------------------------------------------------------------------------------------------------------------------
# What is said of a row


def _cost(trace: Any, row: Row | None) -> dict[str, int]:
    """Parameters, FLOPs and bytes of a row; of folded ones, those of the last: the first pays for what all share."""
    if row is None:
        return {}
    items = row.others[-1] if row.others else row.items
    modules = [item for item in items if isinstance(item, Scope) and item.is_module]
    return {
        "params": sum(trace.params.count(item.path) for item in modules),
        "FLOP": row.flops,
        "bytes": sum(map(saved_bytes, items)),
    }


def _sizes(trace: Any) -> dict[str, int]:
    return {name: sizes[0] for name, sizes in trace.namers[0].vectors.items()}


def _same_symbols(old: Row, new: Row) -> bool:
    """Whether both take and give tensors of the same names; of `G+1|K/2` and `K/2|F-77` one reading is the same."""
    for before, after in zip(row_ends(old), row_ends(new), strict=True):
        if len(before) != len(after) or not all(map(_same_shape, before, after)):
            return False
    return True


def _same_shape(a: Value, b: Value) -> bool:
    if a.dtype != b.dtype or a.device != b.device or len(a.shape or ()) != len(b.shape or ()):
        return False
    if a.symbols is None or b.symbols is None:
        return a.shape == b.shape
    return all(set(mine.split("|")) & set(other.split("|")) for mine, other in zip(a.symbols, b.symbols, strict=True))


def _amount(name: str, count: int) -> str:
    if name == "params":
        return f"{count:,} params"
    return f"{number(count, 'B')} saved" if name == "bytes" else number(count, name)


def _from_to(name: str, before: int, after: int) -> str:
    """`768 → 1,536 params`, `23.0 kFLOP → 46.1 kFLOP`; one number where both are equal."""
    texts = list(dict.fromkeys(_amount(name, count) for count in (before, after)))
    return " → ".join([text.removesuffix(" params").removesuffix(" saved") for text in texts[:-1]] + texts[-1:])


def _names(row: Row) -> str:
    return f"▸ {row.parts[0]}" if row.is_scope else f"  {row.names:<8} "


def _title(row: Row) -> tuple[str, str]:
    """Path, method or operation, and class; without the parameters, which stand in a column beside."""
    owner = row.items[0].owner if row.is_scope and row.items[0].is_module else ""
    return row.parts[1], owner if owner != row.name else ""


def _cells(change: Change) -> Iterator[tuple[str, str, str, str]]:
    """(kind, label, shapes, costs): one line, or two where shapes changed."""
    old, new, guide, costs = change.old, change.new, "│ " * change.depth, "   ".join(change.costs)
    if old is None or new is None:
        row = new or old
        count = row.lines()
        more = f"[{count} line{'s' if count > 1 else ''}]" if count else ""
        yield change.kind, guide + change.label, row.shapes, "   ".join(filter(None, [costs, more]))
    elif change.kind == "changed" and not _same_symbols(old, new):
        yield "removed", guide + Change("", 0, old, None).label, old.shapes, ""
        yield "added", guide + Change("", 0, None, new).label, new.shapes, costs
    elif change.kind == "changed":
        yield change.kind, guide + change.label, new.shapes, costs
    else:
        yield change.kind, guide + change.label, "", ""


def _result(row: Row | None) -> str:
    """What a row gives, in names and numbers: `(B,H,T,K) =(3,4,5,6)`."""
    if row is None:
        return "·"
    given = row_ends(row)[1]
    sizes = f" ={numbers(given[0])}" if len(set(given)) == 1 and given[0].symbols is not None else ""
    return shapes_text(given, 2) + sizes


def _head(trace: Any) -> str:
    call, sizes = trace.calls[0], _sizes(trace)
    return " ".join([call.owner or call.function, *(f"{name}={sizes[name]}" for name in "BTS" if name in sizes)])
