"""Shape comments: `# (B, T, D)`, `# each (B, T, H, K/2)`, `# (T, S) or (B, T, S)`, `# q (B, H, T, K), k (B, G, S, K)`.

A comment is one about shapes if it begins with a shape, or with at most a few words that lead to one. All other
parentheses are prose. Of docstrings, the first line is read where it has the form `(B, T) -> (B, T, D)`.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Container
from dataclasses import dataclass

from lab.tracer.shapes import Dim, Seen, Sizes, fit, parse_dim, seen_text
from lab.tracer.values import Value

_DTYPES = {
    "int64": "int64", "int32": "int32", "int16": "int16", "int8": "int8", "uint8": "uint8", "bool": "bool",
    "float32": "float32", "fp32": "float32", "float64": "float64", "fp64": "float64", "float16": "float16",
    "fp16": "float16", "bfloat16": "bfloat16", "bf16": "bfloat16", "complex64": "complex64", "long": "int64",
}  # fmt: skip
_GROUP = re.compile(r"(?<![\w.)\]'\"`])(?:\(((?:[^()\[\]]|\([^()]*\))*)\)|\[([^()\[\]]*)\])")
_PREPOSITIONS = set("of with beside from to like as than not for over against in on by per see eq at e.g. i.e.".split())
_FILLERS = {"each", "all", "both", "and", "is", "are", "now", "shape", "returns", "bool", *_DTYPES}
MAX_LEAD = 3  # words that may lead to a shape


@dataclass(frozen=True)
class Shape:
    """One shape as written."""

    text: str
    dims: tuple[Dim, ...]
    dtype: str = ""


@dataclass(frozen=True)
class Slot:
    """What a comment says of one tensor: any of some shapes. `name`: the word before it."""

    shapes: tuple[Shape, ...]
    name: str = ""

    def text(self) -> str:
        return " or ".join(shape.text for shape in self.shapes)


@dataclass(frozen=True)
class Comment:
    """A shape comment. `each`: its one slot holds for every tensor of the line."""

    line: int
    slots: tuple[Slot, ...]
    each: bool


def shape_comments(lines: list[str], first: int, last: int, known: Container[str] = ()) -> list[Comment]:
    """The shape comments that stand behind code in lines first..last (from 1). `known`: lower-case names of sizes."""
    found = []
    for line, column, text in _comments(lines):
        if first <= line <= last and lines[line - 1][:column].strip():
            comment = parse_comment(text.lstrip("# "), line, known)
            if comment is not None:
                found.append(comment)
    return found


def _comments(lines: list[str]) -> list[tuple[int, int, str]]:
    tokens = tokenize.generate_tokens(io.StringIO("".join(lines)).readline)
    return [(*token.start, token.string) for token in tokens if token.type == tokenize.COMMENT]


def parse_comment(text: str, line: int = 0, known: Container[str] = ()) -> Comment | None:
    """What a comment says about shapes; None if it is about something else."""
    slots, lead = _slots(text, known)
    words = [word.strip(",:;=") for word in lead.split()]
    plain = [word for word in words if word and word.lower() not in _FILLERS]
    if not slots or len(plain) > MAX_LEAD or any(word.lower() in _PREPOSITIONS for word in plain):
        return None
    return Comment(line, tuple(slots), "each" in words or "both" in words or len(slots) == 1)


def _slots(text: str, known: Container[str]) -> tuple[list[Slot], str]:
    """The slots of a text, and the words before the first of them. Behind an arrow they begin anew."""
    slots: list[Slot] = []
    lead, end = "", 0
    for match in _GROUP.finditer(text):
        before = text[end : match.start()]
        shape = _parse_shape(match, text, known, at_start=not before.strip() and not slots)
        if shape is None:
            continue
        if slots and re.search(r"->|→|=>", before):
            slots = []
        if slots and re.fullmatch(r"(\s*\w+)?\s*,?\s*or\s*", before):  # "(B, T) int64 or (B, T, D)"
            slots[-1] = Slot((*slots[-1].shapes, shape), slots[-1].name)
        else:
            lead = lead if slots else before
            slots.append(Slot((shape,), _word_before(before)))
        end = match.end()
    return slots, lead


def _word_before(text: str) -> str:
    word = re.search(r"([A-Za-z_]\w*)[\s:=]*$", text)
    return word[1] if word else ""


def _parse_shape(match: re.Match, text: str, known: Container[str], at_start: bool) -> Shape | None:
    inside = match[1] if match[1] is not None else match[2]
    dims = parse_dims(inside, known)
    if dims is None:
        return None
    lettered = any(dim.names or dim.tree is None for dim in dims)
    if not lettered and not at_start:
        return None
    if len(dims) == 1 and "," not in inside and dims[0].tree is not None and match[0] != text.strip():
        return None  # "(K)" in the middle of prose
    dtype = re.match(r"\s*(\w+)", text[match.end() :])
    return Shape(match[0], dims, _DTYPES.get(dtype[1], "") if dtype else "")


def parse_dims(inside: str, known: Container[str] = ()) -> tuple[Dim, ...] | None:
    """The dimensions between a shape's parentheses; None if what stands there is no shape."""
    pieces = [piece.strip() for piece in inside.split(",")]
    if len(pieces) > 1 and not pieces[-1]:
        pieces.pop()
    if pieces == [""]:
        return ()
    dims = [parse_dim(piece) for piece in pieces]
    if any(dim is None for dim in dims) or sum(dim.tree is None for dim in dims) > 1:
        return None
    names = {name for dim in dims for name in dim.names}
    return tuple(dims) if all(name[0].isupper() or name in known for name in names) else None


# --------------------------------------------------------------------------------------------------------------------
# Held against what was seen


def disagreements(comment: Comment, tensors: list[tuple[str, list[Value]]], scope, seen: Seen) -> list[str]:
    """What the tensors of a line, by name, are instead of what the comment says. Free letters hold for the comment."""
    bound: Sizes = {}
    found = []
    for slot, name, value in pairs(comment, tensors):
        bound, fits = hold(slot, value, scope, seen, bound)
        if not fits:
            found.append(f"the comment says {slot.text()}, but {name or 'it'} is {seen_text(value)}")
    return found


def pairs(comment: Comment, tensors: list[tuple[str, list[Value]]]) -> list[tuple[Slot, str, Value]]:
    """Which slot speaks of which tensor: by name, else in order; a single one speaks of all."""
    flat = [(name, value) for name, values in tensors for value in values if value.shape is not None]
    if comment.each:
        return [(comment.slots[0], name, value) for name, value in flat]
    names = [name for name, _ in flat]
    if all(slot.name in names for slot in comment.slots):
        return [(slot, name, value) for slot in comment.slots for name, value in flat if name == slot.name]
    return [(slot, name, value) for slot, (name, value) in zip(comment.slots, flat)]


def hold(slot: Slot, value: Value, scope, seen: Seen, bound: Sizes) -> tuple[Sizes, bool]:
    """The free letters bound after one tensor, and whether any of the slot's shapes is its."""
    letters = seen.letters(scope)
    for shape in slot.shapes:
        if shape.dtype and shape.dtype != str(value.dtype).removeprefix("torch."):
            continue
        sizes = seen.sizes(value, scope)
        after = fit(shape.dims, sizes, letters, bound, literal_runs=len(sizes[0]) if sizes else 1)
        if after is not None:
            return after, True
    return bound, False


# --------------------------------------------------------------------------------------------------------------------
# Docstrings


@dataclass(frozen=True)
class Arrow:
    """`q (B, H, T, K), k and v (B, G, S, K) -> (B, H, T, K)`: each slot with the arguments it speaks of, if named."""

    line: int
    inputs: tuple[tuple[Slot, tuple[str, ...]], ...]
    outputs: tuple[Slot, ...]


_NAMES = r"(?:[A-Za-z_]\w*(?:(?:,\s*|\s+and\s+)[A-Za-z_]\w*)*)"
_ITEM = rf"(?:{_NAMES}\s+)?\([^()]*\)(?:\s+\w*\d+|\s+bool)?"
_ARROW = re.compile(
    rf"(?:^|:\s+|,\s+)(?P<left>{_ITEM}(?:,\s*{_ITEM})*)\s*(?:->|→)\s*(?P<right>{_ITEM}(?:,\s*{_ITEM})*)"
)


def docstring_arrow(text: str, line: int, known: Container[str] = ()) -> Arrow | None:
    """The shapes in the first line of a docstring, where it plainly says what goes in and what comes out."""
    match = _ARROW.search(text.strip().partition("\n")[0])
    if match is None:
        return None
    inputs, outputs = [], []
    for side, found in (("left", inputs), ("right", outputs)):
        for item in re.finditer(rf"(?:({_NAMES})\s+)?(\([^()]*\)(?:\s+\w+)?)", match[side]):
            slots, _ = _slots(item[2], known)
            if len(slots) != 1:
                return None
            found.append((slots[0], tuple(re.split(r",\s*|\s+and\s+", item[1])) if item[1] else ()))
    return Arrow(line, tuple(inputs), tuple(slot for slot, _ in outputs))
