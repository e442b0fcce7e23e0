"""Reading Python frames: whose method runs, with which arguments, how it ended; and the marker `@log_io`."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

from lab.tracer.values import Info, Value, describe, render

# --------------------------------------------------------------------------------------------------------------------
# The marker


class Mark(NamedTuple):
    """What `@log_io` knows about a function. `code` is held so that its id stays its own."""

    function: Callable
    signature: str | None  # the one written beside the marker, if any
    code: CodeType


MARKS: dict[int, Mark] = {}  # by id of the code object: hashing a code object takes longer than reading it


def log_io(target: Callable | str) -> Callable:
    """Mark a function so that its calls can be logged and traced. Returns the function itself, unchanged.

    Use it bare, or with a signature of shapes, `@log_io("x: B T D, mask: T T -> B T D")`, which
    `trace(..., check=True)` compares with what it sees.
    Under other decorators it is the innermost function that is marked, because its frame holds the true arguments.
    """
    if isinstance(target, str):
        return functools.partial(_mark, signature=target)
    return _mark(target)


def _mark(function: Callable, signature: str | None = None) -> Callable:
    inner = inspect.unwrap(function)
    if not inspect.isfunction(inner):
        raise TypeError(f"@log_io: {function!r} is not a Python function; write @log_io directly above a `def`")
    MARKS[id(inner.__code__)] = Mark(inner, signature, inner.__code__)
    function.__log_io__ = True
    return function


SEE_THROUGH: dict[int, CodeType] = {}  # by id, as above


def see_through(function: Callable) -> Callable:
    """Mark a function that a trace does not show: what it does counts as done by the line that called it.

    For steps of an interpreter, such as the one that runs a recipe. Returns the function itself, unchanged.
    """
    SEE_THROUGH[id(function.__code__)] = function.__code__
    return function


# --------------------------------------------------------------------------------------------------------------------
# Frames


class Argument(NamedTuple):
    """One argument of a call. `default`: its value is the one that the signature gives, whether passed or not."""

    name: str
    info: Info
    default: bool

    def text(self, named: bool = True) -> str:
        link = "=" if isinstance(self.info, str) else " "
        return f"{self.name}{link}{render(self.info, named)}" + (" (default)" if self.default else "")


def owner_of(code: CodeType, values: dict[str, Any]) -> nn.Module | None:
    """The module whose method a frame with these local values runs, or None for a plain function."""
    if not code.co_argcount:
        return None
    first = values.get(code.co_varnames[0])
    return first if isinstance(first, nn.Module) and hasattr(type(first), code.co_name) else None


def arguments_of(
    code: CodeType, values: dict[str, Any], owner: nn.Module | None, see: Callable[[torch.Tensor], Value] = Value
) -> tuple[Argument, ...]:
    """The arguments of a call that has just begun, under the names that its function gives them, without `self`."""
    signature = _signature(code, owner)
    defaults, named = signature.defaults, []
    for name in signature.names:
        value = values[name]
        is_default = name in defaults and value is defaults[name]
        info = see(value) if isinstance(value, torch.Tensor) else describe(value, see)
        named.append(Argument(name, info, is_default))
    for star, name in signature.starred:
        if values[name]:
            named.append(Argument(star + name, describe(values[name], see), default=False))
    return tuple(named)


class Signature(NamedTuple):
    """What a function says about its arguments; `code` is held so that its id stays its own."""

    code: CodeType
    names: list[str]  # without `self`
    starred: list[tuple[str, str]]  # ("*", "args"), ("**", "kwargs") where there are such
    defaults: dict[str, Any]


_SIGNATURES: dict[tuple[int, type | None], Signature] = {}  # by id of the code and class of the module


def _signature(code: CodeType, owner: nn.Module | None) -> Signature:
    key = id(code), None if owner is None else type(owner)
    if key not in _SIGNATURES:
        names, varargs, varkw = inspect.getargs(code)
        starred = [(star, name) for star, name in (("*", varargs), ("**", varkw)) if name]
        names = names if owner is None else names[1:]
        _SIGNATURES[key] = Signature(code, names, starred, _defaults(code, owner))
    return _SIGNATURES[key]


def _defaults(code: CodeType, owner: nn.Module | None) -> dict[str, Any]:
    function = function_of(code, owner)
    if function is None:
        return {}
    positional = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(positional) : code.co_argcount]
    return dict(zip(names, positional, strict=True)) | (function.__kwdefaults__ or {})


def function_of(code: CodeType, owner: nn.Module | None) -> Callable | None:
    """The function whose code this is: a marked one or a method of `owner`'s class; None where it can't be found."""
    if id(code) in MARKS:
        return MARKS[id(code)].function
    for cls in type(owner).__mro__:
        function = vars(cls).get(code.co_name)
        function = inspect.unwrap(getattr(function, "__func__", function))  # __func__: of class and static methods
        if getattr(function, "__code__", None) is code:
            return function
    return None


def call_arguments(code: CodeType, values: dict[str, Any], owner: nn.Module | None) -> tuple[list[Any], dict[str, Any]]:
    """What to pass to make a call that has just begun again: positional and keyword arguments, without `self`.

    Decorators may have added keywords of their own and will do so again: under them, what can go by name does.
    """
    names, varargs, varkw = inspect.getargs(code)
    by_place = 0 if owner is None else 1
    count = code.co_argcount if varargs or not _is_wrapped(code, owner) else max(code.co_posonlyargcount, by_place)
    args = [values[name] for name in names[by_place:count]]
    kwargs = {name: values[name] for name in names[count:]}
    return args + list(values[varargs] if varargs else ()), kwargs | (values[varkw] if varkw else {})


def _is_wrapped(code: CodeType, owner: nn.Module | None) -> bool:
    return getattr(getattr(type(owner), code.co_name, None), "__code__", None) is not code


def ends_normally(frame: FrameType) -> bool:
    """Whether a frame that is being left returns a value (rather than being unwound by an exception)."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(("RETURN", "YIELD"))


def set_profile(profiler: Any) -> None:
    """Put a profiler back. One written in C (cProfile) is not callable and must be enabled again."""
    if profiler is None or callable(profiler):
        sys.setprofile(profiler)
    else:
        profiler.enable()
