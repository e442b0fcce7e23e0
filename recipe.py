"""The block language: one layer, or a whole pattern of layers, as a line of text.

    'Norm->Attn->+->Norm->MLP->+'              a pre-norm layer
    'Norm->[Attn|MLP]->+'                      attention and MLP side by side (GPT-J)
    '{Norm->RGLRU->+->Norm->MLP->+}*2->Norm->Attn(window=128)->+->Norm->MLP->+'

Two registers run through a layer: the residual r and the working value x, which starts as r. A module sets x = f(x).
`+` sets r = r + x and x = r; `=` sets r = x. What a lane's end returns is x.

    layer := lane {"||" lane}                  lanes start from the same r; merged as r + sum(lane(r) - r)
    lane  := step {"->" step}
    step  := (resid | "=" | unit [rep]) {"@" NAME}         "@" keeps a copy of x as a tap
    unit  := NAME [args] ["{" layer "}"] ["#" NAME]        NAME{...}: a wrapper that gets the inner recipe as a module
           | "[" lane {"|" lane} "]" [args] ["#" NAME]     branches: the same x through each, joined (sum)
           | "{" layer "}" ["#" NAME]                      a group: the same r and x
    rep   := "*" INT                           fresh copies
           | "^" INT                           the same weights again
    resid := "+" [args]                        +(@a) adds the tap a in place of x
    args  := "(" [NAME "="] value {"," [NAME "="] value} ")"
    value := number | "string" | true | false | none | "@" NAME | NAME args | "[" [value {"," value}] "]"

`#tag` shares parameters among the units of that tag. `cyc(a,b,c)` and `lin(a,b)` are values that depend on the depth.
`parse` gives the syntax tree, `format` its one canonical text. This file imports no torch: a config checks its recipe
before anything is built.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

# --------------------------------------------------------------------------------------------------------------------
# The tree. `column` (from 1) is where a part begins in the text it was parsed from; it does not count for equality.


@dataclass(frozen=True)
class Tap:
    """`@a` as a value: what was kept under that name."""

    name: str


@dataclass(frozen=True)
class ByDepth:
    """`cyc(64,64,none)` or `lin(0,0.1)`: a value for each layer."""

    name: str
    values: tuple
    column: int = field(default=0, compare=False)


Value = int | float | str | bool | None | Tap | ByDepth | tuple
Args = tuple[tuple[str | None, Value], ...]  # (name or None, value)


@dataclass(frozen=True)
class Add:
    """`+`: r = r + x."""

    args: Args = ()
    column: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Set:
    """`=`: r = x."""

    column: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Unit:
    """`Attn(window=128)`, `Patch(size=4){...}`, `MLP#ffn`."""

    name: str
    args: Args = ()
    inner: Layer | None = None
    tag: str | None = None
    column: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Branches:
    """`[Attn|MLP]`: the same x through each lane, joined."""

    lanes: tuple[Lane, ...]
    args: Args = ()
    tag: str | None = None
    column: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Group:
    """`{...}`: steps that are repeated or tagged together, on the same r and x."""

    layer: Layer
    tag: str | None = None
    column: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Step:
    """One step of a lane: what is done, how often, and under which names its x is kept."""

    body: Add | Set | Unit | Branches | Group
    times: int = 1
    shared: bool = False  # "^": the same weights each time; "*": fresh ones
    taps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lane:
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Layer:
    """What a recipe says; `text` is what it was parsed from, for messages."""

    lanes: tuple[Lane, ...]
    text: str = field(default="", compare=False)

    def units(self) -> Iterator[Unit]:
        """Every named unit, in the order of the text."""
        for lane in self.lanes:
            yield from _units(lane)


def _units(lane: Lane) -> Iterator[Unit]:
    for step in lane.steps:
        body = step.body
        if isinstance(body, Unit):
            yield body
            if body.inner is not None:
                yield from body.inner.units()
        elif isinstance(body, Group):
            yield from body.layer.units()
        elif isinstance(body, Branches):
            for branch in body.lanes:
                yield from _units(branch)


# --------------------------------------------------------------------------------------------------------------------
# Reading


class RecipeError(ValueError):
    """A recipe that cannot be read or built; the message names the column, what stands there and what could."""

    def __init__(self, problem: str, text: str, column: int, remedy: str = ""):
        super().__init__(f"{problem} at column {column} of {text!r}" + (f"; {remedy}" if remedy else ""))
        self.column = column


_TOKEN = re.compile(
    r"""\s*(?:(?P<number>-?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<string>"(?:[^"\\]|\\.)*")"""
    r"""|(?P<sign>->|\|\||[-+=|{}\[\]()*^#@,]))"""
)
MAX_NESTING, MAX_DIGITS, MAX_TIMES = 40, 300, 1000
_WORDS = {"true": True, "false": False, "none": None}
_DEPTH = ("cyc", "lin")


def parse(recipe: str | list[str]) -> Layer:
    """The syntax tree of a recipe; a list of strings is read as lanes. Raises RecipeError, a ValueError."""
    if isinstance(recipe, list | tuple):
        if not recipe or not all(isinstance(lane, str) for lane in recipe):
            raise ValueError(f"recipe={recipe!r} must be a string or a list of strings, one for each lane")
        recipe = "||".join(recipe)
    if not isinstance(recipe, str):
        raise ValueError(f"recipe={recipe!r} must be a string or a list of strings, one for each lane")
    return _Reader(recipe).whole()


class _Reader:
    """Recursive descent: one method for each rule of the grammar."""

    def __init__(self, text: str):
        self.text = text
        self.tokens = list(self._split())
        self.at = 0
        self._check_nesting()

    def _split(self) -> Iterator[tuple[str, str, int]]:
        """(kind, text, column) of each token, and an ("end", "", column) behind them."""
        position, end = 0, len(self.text.rstrip())
        while position < end:
            match = _TOKEN.match(self.text, position)
            if match is None:
                start = position + len(self.text[position:]) - len(self.text[position:].lstrip())
                problem = (
                    "a string that does not end" if self.text[start] == '"' else f"unexpected {self.text[start]!r}"
                )
                raise RecipeError(problem, self.text, start + 1)
            yield match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1
            position = match.end()
        yield "end", "", end + 1

    def _check_nesting(self) -> None:
        """Brackets inside of brackets are read by functions inside of functions, of which Python has only so many."""
        inside = 0
        for kind, text, column in self.tokens:
            inside += (kind == "sign") * ((text in "([{") - (text in ")]}"))
            if inside > MAX_NESTING:
                raise RecipeError(f"more than {MAX_NESTING} brackets inside of one another", self.text, column)

    # ---- tokens

    @property
    def token(self) -> tuple[str, str, int]:
        return self.tokens[self.at]

    def take(self, *wanted: str) -> str | None:
        """The sign that stands here, if it is one of those wanted; then the reader moves on."""
        kind, text, _ = self.token
        if kind == "sign" and text in wanted:
            self.at += 1
            return text
        return None

    def need(self, sign: str, why: str) -> None:
        if not self.take(sign):
            self.fail(f"expected {sign!r} {why}")

    def fail(self, expected: str) -> None:
        kind, text, column = self.token
        found = "the recipe ends" if kind == "end" else f"there is {text!r}"
        raise RecipeError(f"{expected}, but {found}", self.text, column)

    def kind(self, kind: str, expected: str) -> str:
        if self.token[0] != kind:
            self.fail(f"expected {expected}")
        self.at += 1
        return self.tokens[self.at - 1][1]

    # ---- rules

    def whole(self) -> Layer:
        layer = self.layer()
        if self.token[0] != "end":
            self.fail("expected '->', '||' or the end")
        return layer

    def layer(self) -> Layer:
        lanes = [self.lane()]
        while self.take("||"):
            lanes.append(self.lane())
        return Layer(tuple(lanes), self.text)

    def lane(self) -> Lane:
        steps = [self.step()]
        while self.take("->"):
            steps.append(self.step())
        return Lane(tuple(steps))

    def step(self) -> Step:
        column, times, shared = self.token[2], 1, False
        if self.take("+"):
            body = Add(self.args(), column)
        elif self.take("="):
            body = Set(column)
        else:
            body = self.unit(column)
            sign = self.take("*", "^")
            if sign:
                times, shared = self.count(), sign == "^"
        taps = []
        while self.take("@"):
            taps.append(self.kind("name", "the name of a tap"))
        return Step(body, times, shared, tuple(taps))

    def count(self) -> int:
        column = self.token[2]
        text = self.kind("number", "how often, a whole number")
        if not text.isdigit() or len(text) > len(str(MAX_TIMES)) or not 1 <= int(text) <= MAX_TIMES:
            problem = f"expected how often, a whole number from 1 to {MAX_TIMES}, but there is {text[:20]!r}"
            raise RecipeError(problem, self.text, column)
        return int(text)

    def unit(self, column: int) -> Unit | Branches | Group:
        if self.take("["):
            lanes = [self.lane()]
            while self.take("|"):
                lanes.append(self.lane())
            self.need("]", "or '|' in the branches")
            return Branches(tuple(lanes), self.args(), self.tag(), column)
        if self.take("{"):
            layer = self.layer()
            self.need("}", "to close the group")
            return Group(layer, self.tag(), column)
        name = self.kind("name", "a block, '+', '=', '[' or '{'")
        args, inner = self.args(), None
        if self.take("{"):
            inner = self.layer()
            self.need("}", f"to close {name}")
        return Unit(name, args, inner, self.tag(), column)

    def tag(self) -> str | None:
        return self.kind("name", "the name of a tag") if self.take("#") else None

    def args(self) -> Args:
        if not self.take("("):
            return ()
        found: list[tuple[str | None, Value]] = []
        while True:
            found.append(self.argument(found))
            if not self.take(","):
                self.need(")", "or ',' in the arguments")
                return tuple(found)

    def argument(self, before: list) -> tuple[str | None, Value]:
        kind, name, column = self.token
        following = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else ("end", "", 0)
        if kind != "name" or following[:2] != ("sign", "="):
            if any(given is not None for given, _ in before):
                raise RecipeError("an argument without a name stands behind one with a name", self.text, column)
            return None, self.value()
        if name in [given for given, _ in before]:
            raise RecipeError(f"the argument {name!r} is given twice", self.text, column)
        self.at += 2
        return name, self.value()

    def value(self) -> Value:
        kind, text, column = self.token
        if kind == "number":
            self.at += 1
            return self.number(text, column)
        if kind == "string":
            self.at += 1
            return self.string(text, column)
        if self.take("@"):
            return Tap(self.kind("name", "the name of a tap"))
        if self.take("["):
            return self.values("]")
        if kind != "name":
            self.fail("expected a value")
        self.at += 1
        if text in _WORDS:
            return _WORDS[text]
        if text in _DEPTH:
            self.need("(", f"after {text}")
            return self.by_depth(text, column)
        near = nearest(text, [*_WORDS, *_DEPTH])
        remedy = f"did you mean {near!r}?" if near else f'a text is written "{text}"'
        raise RecipeError(f"unknown value {text!r}", self.text, column, remedy)

    def values(self, end: str) -> tuple[Value, ...]:
        if self.take(end):
            return ()
        found = []
        while not found or self.take(","):
            if self.token[1] == "@":
                self.fail("expected a value that is no tap, since it stands in a list")
            found.append(self.value())
        self.need(end, "or ','")
        return tuple(found)

    def by_depth(self, name: str, column: int) -> ByDepth:
        value = ByDepth(name, self.values(")"), column)
        try:
            at_depth(value, 0, 1)
        except ValueError as error:
            raise RecipeError(str(error), self.text, column) from None
        return value

    def number(self, text: str, column: int) -> int | float:
        if len(text) > MAX_DIGITS or abs(float(text)) == float("inf"):
            raise RecipeError(f"the number {text[:20]}{'…' * (len(text) > 20)} is too large", self.text, column)
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)

    def string(self, text: str, column: int) -> str:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise RecipeError(f"a string that cannot be read ({error.msg})", self.text, column) from None


# --------------------------------------------------------------------------------------------------------------------
# Writing


def format(layer: Layer) -> str:
    """The canonical text of a syntax tree: `parse(format(layer)) == layer`."""
    return "||".join(_lane_text(lane) for lane in layer.lanes)


def _lane_text(lane: Lane) -> str:
    return "->".join(_step_text(step) for step in lane.steps)


def _step_text(step: Step) -> str:
    body = step.body
    if isinstance(body, Add):
        text = "+" + _args_text(body.args)
    elif isinstance(body, Set):
        text = "="
    elif isinstance(body, Unit):
        inner = "{" + format(body.inner) + "}" if body.inner is not None else ""
        text = body.name + _args_text(body.args) + inner + _tag_text(body.tag)
    elif isinstance(body, Branches):
        text = "[" + "|".join(map(_lane_text, body.lanes)) + "]" + _args_text(body.args) + _tag_text(body.tag)
    else:
        text = "{" + format(body.layer) + "}" + _tag_text(body.tag)
    if step.times != 1 or step.shared:
        text += f"{'^' if step.shared else '*'}{step.times}"
    return text + "".join(f"@{name}" for name in step.taps)


def _tag_text(tag: str | None) -> str:
    return f"#{tag}" if tag else ""


def _args_text(args: Args) -> str:
    parts = [f"{name}={_value_text(value)}" if name else _value_text(value) for name, value in args]
    return f"({','.join(parts)})" if parts else ""


def _value_text(value: Value) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Tap):
        return f"@{value.name}"
    if isinstance(value, ByDepth):
        return f"{value.name}({','.join(map(_value_text, value.values))})"
    if isinstance(value, tuple):
        return f"[{','.join(map(_value_text, value))}]"
    return repr(value)


# --------------------------------------------------------------------------------------------------------------------
# Using


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that a mistyped word most likely meant, upper and lower case being one; None where none is near."""
    by_lower_case = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), by_lower_case, n=1)
    return by_lower_case[close[0]] if close else None


def at_depth(value: Any, index: int, count: int) -> Any:
    """What a value is in layer `index` of `count`: `cyc` takes turns, `lin` goes from the first number to the second.

    Raises ValueError where `lin` is not given two numbers, or `cyc` nothing.
    """
    if isinstance(value, tuple):
        return tuple(at_depth(part, index, count) for part in value)
    if not isinstance(value, ByDepth):
        return value
    if value.name == "cyc":
        if not value.values:
            raise ValueError("cyc() needs at least one value")
        return at_depth(value.values[index % len(value.values)], index, count)
    numbers = value.values
    if len(numbers) != 2 or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        raise ValueError(f"{_value_text(value)} must be given two numbers, the first layer's and the last layer's")
    return numbers[0] + (numbers[1] - numbers[0]) * index / max(count - 1, 1)
