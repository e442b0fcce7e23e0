"""`trace(..., check=True)`: the shapes that functions declare, `@log_io("x: B T D -> B T D")`, held against what came.

A signature lists `name: dims` of arguments, an arrow, and the dims of what is returned; several outputs are separated
by commas and may have names. Dims stand apart by spaces and are formulas in the letters of the key, such as `H*K` or
`K/2`. A letter that is not in the key must mean one size throughout a call; a number is itself; `...` is any dims;
`()` is a tensor without dims.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType

from lab.tracer.frames import MARKS
from lab.tracer.record import Scope
from lab.tracer.shapes import Dim, Seen, Sizes, fit, parse_dim, seen_text
from lab.tracer.values import Group, Info, render, tensors_in

MAX_LISTED = 5


@dataclass(frozen=True)
class Part:
    """One tensor of a signature."""

    name: str  # "" for an output without a name
    text: str
    dims: tuple[Dim, ...]
    column: int  # where in the signature it stands, from 1


@dataclass(frozen=True)
class Signature:
    """A parsed signature."""

    inputs: tuple[Part, ...]
    outputs: tuple[Part, ...]


def check_signatures(trace) -> None:
    """Compares every recorded call of a function that declares its shapes. Raises ValueError listing what disagrees."""
    seen, found = Seen(trace), {}
    for call in trace.calls:
        for scope in call.walk():
            mark = MARKS.get(id(scope.code)) if isinstance(scope, Scope) else None
            if mark is not None and mark.signature is not None:
                for text in _violations(scope, mark.signature, seen):
                    found[text] = found.get(text, 0) + 1
    if found:
        texts = [text if count == 1 else f"{text} ({count} calls)" for text, count in found.items()]
        more = [f"and {len(texts) - MAX_LISTED} more"] if len(texts) > MAX_LISTED else []
        raise ValueError("; ".join(texts[:MAX_LISTED] + more))


def _violations(scope: Scope, text: str, seen: Seen) -> list[str]:
    title = f"{scope.owner}.{scope.function}" if scope.owner else scope.function
    signature = parse_signature(text, title, _parameters(scope.code))
    letters, bound, found = seen.letters(scope, same_config=True), {}, []
    given = {argument.name.lstrip("*"): argument.info for argument in scope.arguments}
    pairs = [(part, part.name, given.get(part.name, "None")) for part in signature.inputs]
    if not scope.failed:
        outputs = _outputs(scope.output, len(signature.outputs))
        if outputs is None:
            returned = render(scope.output) if scope.output is not None else "None"
            found.append(f"{title}: it returns {returned}, but its signature says '{text.partition('->')[2].strip()}'")
        else:
            names = [part.name or _ordinal(i, len(outputs)) for i, part in enumerate(signature.outputs)]
            pairs += zip(signature.outputs, names, outputs)
    for part, name, info in pairs:
        bound, problem = _compare(part, info, letters, bound, seen, scope)
        if problem:
            found.append(f"{title}: {name} is {problem}, but its signature says '{part.text}'{_given(part, bound)}")
    return found


def _compare(part: Part, info: Info, letters: Sizes, bound: Sizes, seen: Seen, scope: Scope) -> tuple[Sizes, str]:
    """The letters bound after this tensor, and what it is instead of what it should be, or nothing."""
    if info == "None":  # an argument that was left out
        return bound, ""
    tensors = [value for value in tensors_in(info) if value.shape is not None]
    if not tensors:
        return bound, render(info)
    for value in tensors:
        after = fit(part.dims, seen.sizes(value, scope, same_config=True), letters, bound)
        if after is None:
            return bound, seen_text(value)
        bound = after
    return bound, ""


def _given(part: Part, bound: Sizes) -> str:
    """`, with N=7`: the free letters that were decided before."""
    sizes = [f"{name}={bound[name][0]}" for dim in part.dims for name in sorted(dim.names) if name in bound]
    return f" with {', '.join(dict.fromkeys(sizes))}" if sizes else ""


def _outputs(output: Info | None, count: int) -> list[Info] | None:
    """What was returned, one for each declared output; None if it is not as many."""
    if count == 1:
        return [output] if any(tensors_in(output)) else None
    items = [info for _, info in output.items] if isinstance(output, Group) else [output]
    return items if len(items) == count else None


def _ordinal(index: int, count: int) -> str:
    return "the output" if count == 1 else f"output {index + 1}"


def _parameters(code: CodeType) -> tuple[str, ...]:
    names, varargs, varkw = inspect.getargs(code)
    return tuple(filter(None, [*names, varargs, varkw]))


# --------------------------------------------------------------------------------------------------------------------
# The grammar


@lru_cache(maxsize=1024)
def parse_signature(text: str, title: str, parameters: tuple[str, ...]) -> Signature:
    """Raises ValueError, naming the function and the column, for what is no signature of these parameters."""
    left, arrow, right = text.partition("->")
    if not arrow:
        raise _error(title, text, len(text) + 1, "'->' is missing: write what goes in, '->', what comes out")
    inputs = tuple(_parse_part(piece, at, text, title) for piece, at in _pieces(left, 0)) if left.strip() else ()
    for part in inputs:
        if not part.name:
            raise _error(title, text, part.column, f"an argument needs its name: 'x: {part.text}'")
        if part.name not in parameters:
            known = ", ".join(name for name in parameters if name != "self")
            raise _error(title, text, part.column, f"there is no argument {part.name!r}; there are {known or 'none'}")
    outputs = tuple(_parse_part(piece, at, text, title) for piece, at in _pieces(right, len(left) + 2))
    return Signature(inputs, outputs)


def _pieces(text: str, start: int) -> list[tuple[str, int]]:
    """The parts between commas, each with its column."""
    found = []
    for piece in text.split(","):
        found.append((piece.strip(), start + len(piece) - len(piece.lstrip()) + 1))
        start += len(piece) + 1
    return found


def _parse_part(piece: str, column: int, text: str, title: str) -> Part:
    match = re.fullmatch(r"(?:(\w+)\s*:)?\s*(.*)", piece)
    name, shape = match[1] or "", match[2]
    if not shape:
        raise _error(title, text, column, "a shape is missing; '()' is a tensor without dimensions")
    if shape == "()":
        return Part(name, shape, (), column)
    dims = []
    for word in re.finditer(r"\S+", shape):
        dim = parse_dim(word[0])
        if dim is None:
            at = column + match.start(2) + word.start()
            raise _error(title, text, at, f"{word[0]!r} is no dimension; write B, 4, H*K, K/2, T+1 or ...")
        dims.append(dim)
    if sum(dim.tree is None for dim in dims) > 1:
        raise _error(title, text, column, f"'...' stands twice in {shape!r}, so that it can't be told what each holds")
    return Part(name, shape, tuple(dims), column)


def _error(title: str, text: str, column: int, problem: str) -> ValueError:
    return ValueError(f"{title}: signature {text!r}, column {column}: {problem}")
