"""Watching shapes: live logging of calls, the call tree of a forward pass, and a function's source.

Three things to reach for, all exported by `tools`:

    class MQA(LoggingModule):
        @log_io                                   # marks a method; returns the very same function
        def forward(self, x, ctx=None): ...

    attn.enable_logging(); attn(x)                # prints this module's marked calls as they happen
    with trace(model, names=cfg) as tr: model(x)  # records the calls of all modules; then print(tr)
    show_source(MQA.forward)                      # the real code, highlighted in a notebook

How it works. `@log_io` notes the function's code object and changes nothing else, so a marked function costs nothing
and torch.compile sees the plain function. While something is being watched, `sys.setprofile` reports each Python call
of this thread, and the frame of a call of interest gives the arguments under their true names. The profile function
is set when the outermost watched call begins and taken away when it ends, by an exception too.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import json
import linecache
import os
import re
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import nn

# --------------------------------------------------------------------------------------------------------------------
# The marker


class Mark(NamedTuple):
    """What `@log_io` knows about a function: the function and the signature written beside it, if any."""

    function: Callable
    signature: str | None


_MARKS: dict[int, Mark] = {}  # id of the code object -> Mark; Mark.function keeps the code alive, so ids stay unique


def log_io(target: Callable | str) -> Callable:
    """Mark a function so that its calls can be logged and traced. Returns the function itself, unchanged.

    Use it bare, or with a signature of shapes (`@log_io("x: B T D -> B T D")`), which is kept for checking.
    Under other decorators it is the innermost function that is marked, because its frame holds the true arguments.
    """
    if isinstance(target, str):
        return functools.partial(_mark, signature=target)
    return _mark(target)


def _mark(function: Callable, signature: str | None = None) -> Callable:
    inner = inspect.unwrap(function)
    if not inspect.isfunction(inner):
        raise TypeError(f"@log_io: {function!r} is not a Python function; write @log_io directly above a `def`")
    _MARKS[id(inner.__code__)] = Mark(inner, signature)
    function.__log_io__ = True
    return function


# --------------------------------------------------------------------------------------------------------------------
# Describing values: small descriptions that hold no tensor


@dataclass(frozen=True)
class TensorInfo:
    """What is shown of a tensor."""

    shape: tuple[int, ...] | None  # None where a tensor has no single shape (nested tensors)
    dtype: str
    device: str


@dataclass(frozen=True)
class Group:
    """A tuple, list or dict of values. `items` are (key, description); the key is None in tuples and lists."""

    kind: str
    items: tuple[tuple[str | None, Info], ...]
    hidden: int = 0  # items left out


@dataclass(frozen=True)
class Opaque:
    """Any other object, shown by the name of its type."""

    type_name: str


Info = TensorInfo | Group | Opaque | str  # a str is a plain value, ready to print
MAX_ITEMS, MAX_DEPTH, MAX_TEXT = 8, 3, 40


def describe(value: Any, depth: int = 0) -> Info:
    """A short description of any value: shapes of tensors, plain values as they are, the type's name of the rest."""
    if isinstance(value, torch.Tensor):
        return _describe_tensor(value)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        text = f"{value:.6g}" if type(value) is float else repr(value)
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    if isinstance(value, torch.Size):
        return str(tuple(value))
    if isinstance(value, tuple | list | dict) and depth < MAX_DEPTH:
        return _describe_container(value, depth)
    return Opaque(type(value).__name__)  # never repr(): it may be long, slow or raise


def _describe_tensor(tensor: torch.Tensor) -> TensorInfo:
    try:
        shape = tuple(int(size) for size in tensor.shape)
    except RuntimeError:  # strided nested tensors and uninitialised parameters refuse to give one
        shape = None
    return TensorInfo(shape, str(tensor.dtype).removeprefix("torch."), str(tensor.device))


def _describe_container(value: tuple | list | dict, depth: int) -> Group:
    if isinstance(value, dict):
        kind, pairs = "dict", ((str(key), item) for key, item in value.items())
    elif hasattr(value, "_fields"):  # a named tuple
        kind, pairs = type(value).__name__, zip(value._fields, value, strict=True)
    else:
        kind, pairs = ("list" if isinstance(value, list) else "tuple"), ((None, item) for item in value)
    items = tuple((key, describe(item, depth + 1)) for key, item in islice(pairs, MAX_ITEMS))
    return Group(kind, items, len(value) - len(items))


class Dims:
    """Letters for sizes, such as {"D": 64, "H": 8}: turns (2, 16, 64) into (B,T,D).

    A size gets a letter only by being equal to it, so a size that several letters share is shown as `H|K`, and the
    sizes 0 and 1 stay numbers. Where no letter fits, the products H·K, G·K and B·T are tried.
    """

    PRODUCTS = (("H", "K"), ("G", "K"), ("B", "T"))

    def __init__(self, sizes: dict[str, int]):
        self.sizes = dict(sizes)

    def symbol(self, size: int) -> str:
        if size < 2:
            return str(size)
        fits = [name for name, value in self.sizes.items() if value == size]
        if not fits:
            pairs = [(a, b) for a, b in self.PRODUCTS if a in self.sizes and b in self.sizes]
            fits = [f"{a}·{b}" for a, b in pairs if self.sizes[a] * self.sizes[b] == size]
        return "|".join(fits) or str(size)

    def legend(self) -> str:
        return " ".join(f"{name}={size}" for name, size in self.sizes.items())


def render(info: Info, dims: Dims | None = None) -> str:
    """A description as text: `(3, 5, 32)`, `(3, 5) int64`, `{loss: ()}`, or with letters `(B,T,D)`."""
    if isinstance(info, str):
        return info
    if isinstance(info, Opaque):
        return info.type_name
    if isinstance(info, TensorInfo):
        return _render_tensor(info, dims)
    texts = [f"{key}: {render(item, dims)}" if key else render(item, dims) for key, item in info.items]
    if len(texts) > 2 and len(set(texts)) == 1:
        texts = [f"{texts[0]} ×{len(texts) + info.hidden}"]
    elif info.hidden:
        texts.append(f"… {info.hidden} more")
    left, right = {"dict": "{}", "list": "[]"}.get(info.kind, "()")
    prefix = "" if info.kind in ("dict", "list", "tuple") else info.kind
    return prefix + left + ", ".join(texts) + right


def _render_tensor(info: TensorInfo, dims: Dims | None) -> str:
    if info.shape is None:
        shape = "(nested)"
    elif dims is None:
        shape = str(info.shape)
    else:
        shape = "(" + ",".join(dims.symbol(size) for size in info.shape) + ")"
    rest = [info.dtype if info.dtype != "float32" else "", info.device if info.device != "cpu" else ""]
    return " ".join([shape, *filter(None, rest)])


# --------------------------------------------------------------------------------------------------------------------
# Reading a frame


class Argument(NamedTuple):
    """One argument of a call. `default`: its value is the one that the signature gives, whether passed or not."""

    name: str
    info: Info
    default: bool

    def text(self, dims: Dims | None = None) -> str:
        link = "=" if isinstance(self.info, str) else " "
        return f"{self.name}{link}{render(self.info, dims)}" + (" (default)" if self.default else "")


def _owner(frame: FrameType) -> nn.Module | None:
    """The module whose method this frame runs, or None for a plain function."""
    code = frame.f_code
    if not code.co_argcount:
        return None
    first = frame.f_locals.get(code.co_varnames[0])
    return first if isinstance(first, nn.Module) and hasattr(type(first), code.co_name) else None


def _arguments(frame: FrameType) -> tuple[Argument, ...]:
    """The arguments of a frame that has just begun, under the names that its function gives them, without `self`."""
    signature, values = _signature(frame), frame.f_locals
    defaults = signature.defaults
    named = [
        Argument(name, describe(values[name]), name in defaults and values[name] is defaults[name])
        for name in signature.names
    ]
    for star, name in signature.starred:
        if values[name]:
            named.append(Argument(star + name, describe(values[name]), default=False))
    return tuple(named)


class Signature(NamedTuple):
    """What a function's code says about its arguments; `code` is kept so that its id stays unique."""

    code: CodeType
    names: list[str]  # without `self`
    starred: list[tuple[str, str]]  # ("*", "args"), ("**", "kwargs") where there are such
    defaults: dict[str, Any]


_SIGNATURES: dict[int, Signature] = {}  # by id: hashing a code object takes longer than reading it


def _signature(frame: FrameType) -> Signature:
    code = frame.f_code
    if id(code) not in _SIGNATURES:
        names, varargs, varkw = inspect.getargs(code)
        starred = [(star, name) for star, name in (("*", varargs), ("**", varkw)) if name]
        names = names if _owner(frame) is None else names[1:]
        _SIGNATURES[id(code)] = Signature(code, names, starred, _defaults(frame))
    return _SIGNATURES[id(code)]


def _defaults(frame: FrameType) -> dict[str, Any]:
    function = _function_of(frame)
    if function is None:
        return {}
    code, positional = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(positional) : code.co_argcount]
    return dict(zip(names, positional, strict=True)) | (function.__kwdefaults__ or {})


def _function_of(frame: FrameType) -> Callable | None:
    code = frame.f_code
    if id(code) in _MARKS:
        return _MARKS[id(code)].function
    for cls in type(_owner(frame)).__mro__:
        function = inspect.unwrap(vars(cls).get(code.co_name))
        if getattr(function, "__code__", None) is code:
            return function
    return None


def _ends_normally(frame: FrameType) -> bool:
    """Whether a frame that is being left returns a value (rather than being unwound by an exception)."""
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(("RETURN", "YIELD"))


def _output_names(frame: FrameType, output: Info) -> list[str | None]:
    """Names for the parts of an output, read off the `return` that made it: `return q, k` gives ["q", "k"]."""
    several = isinstance(output, Group) and output.kind == "tuple" and len(output.items) > 1 and not output.hidden
    count = len(output.items) if several else 1
    expression = _returns(frame.f_code).get(frame.f_lineno)
    parts = expression.elts if isinstance(expression, ast.Tuple) else [expression]
    names = [_name(part, in_tuple=count > 1) for part in parts]
    return names if len(names) == count else [None] * count


def _name(expression: ast.expr | None, in_tuple: bool) -> str | None:
    """`q` for q and, among several outputs, which need telling apart, for q.transpose(1, 2) too; else None."""
    while in_tuple and isinstance(expression, ast.Call) and isinstance(expression.func, ast.Attribute):
        expression = expression.func.value
    return expression.id if isinstance(expression, ast.Name) and expression.id != "self" else None


_RETURNS: dict[int, tuple[CodeType, dict[int, ast.expr]]] = {}  # by id of the code, as above


def _returns(code: CodeType) -> dict[int, ast.expr]:
    """The expression after `return` for each line of a function's return statements; {} without its source."""
    if id(code) not in _RETURNS:
        _RETURNS[id(code)] = (code, _read_returns(code))
    return _RETURNS[id(code)][1]


def _read_returns(code: CodeType) -> dict[int, ast.expr]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError, TypeError):  # typed into a plain Python prompt, or a lambda: then there are no names
        return {}
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value]
    start = code.co_firstlineno - 1
    return {start + line: node.value for node in statements for line in range(node.lineno, node.end_lineno + 1)}


def _output_text(output: Info, names: list[str | None], dims: Dims | None = None) -> str:
    parts = [output] if len(names) == 1 else [item for _, item in output.items]
    texts = [render(part, dims) for part in parts]
    return "  ".join(f"{name} {text}" if name else text for name, text in zip(names, texts, strict=True))


# --------------------------------------------------------------------------------------------------------------------
# Watching calls


class _Session:
    """Reports the calls of marked functions and of modules' `forward`, in this thread, between enter and exit.

    A profiler that was there before keeps receiving its events meanwhile and is put back at the end.
    """

    def __init__(self):
        self.frames: list[FrameType] = []  # the calls that are open and that `opened` accepted, outermost first
        self.before: Any = None

    def opened(self, frame: FrameType) -> bool:
        """A call begins; say whether to report its end."""
        raise NotImplementedError

    def closed(self, frame: FrameType, output: Any, failed: bool) -> None:
        """The innermost open call ends, with its output or by an exception."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.before = sys.getprofile()
        sys.setprofile(self._profile)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if sys.getprofile() == self._profile or sys.getprofile() is None:
            _set_profile(self.before)
        self.frames.clear()

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            code = frame.f_code
            if (code.co_name == "forward" or id(code) in _MARKS) and self.opened(frame):
                self.frames.append(frame)
        elif event == "return" and self.frames and self.frames[-1] is frame:
            self.frames.pop()
            self.closed(frame, arg, failed=not _ends_normally(frame))
        if callable(self.before):
            self.before(frame, event, arg)


def _set_profile(profiler: Any) -> None:
    """Put a profiler back. One written in C (cProfile) is not callable and must be enabled again."""
    if profiler is None or callable(profiler):
        sys.setprofile(profiler)
    else:
        profiler.enable()


# --------------------------------------------------------------------------------------------------------------------
# Live logging


class LogSwitch:
    """Which functions of one module are logged: a switch for all, and exceptions for single functions."""

    def __init__(self):
        self.all = False
        self.single: dict[str, bool] = {}

    def on(self, name: str) -> bool:
        return self.single.get(name, self.all)


class LoggingModule(nn.Module):
    """An `nn.Module` whose calls can be printed as they happen: `forward` and every method marked `@log_io`.

    Logging is off at first. Nothing of it reaches `state_dict`; copies and pickles of a module keep it switched on.
    Code compiled by torch.compile prints nothing: log the module before compiling it.
    """

    _log: LogSwitch | None = None  # on an instance only while something is switched

    def enable_logging(self, recursive: bool = False) -> None:
        """Log this module's calls; with `recursive` also those of every LoggingModule inside it.

        Functions that were switched off by name stay off.
        """
        for module in self._logging_modules(recursive):
            switch = module._log or LogSwitch()
            switch.all = True
            module._set_switch(switch)

    def disable_logging(self, recursive: bool = False) -> None:
        """Log none of this module's calls, nor (with `recursive`) those of the modules inside it."""
        for module in self._logging_modules(recursive):
            switch = module._log or LogSwitch()
            switch.all = False
            switch.single = {name: on for name, on in switch.single.items() if not on}
            module._set_switch(switch)

    def enable_function_logging(self, name: str) -> None:
        """Log the function `name`: undoes `disable_function_logging`, or logs it alone while the module's log is off.

        Raises ValueError if there is no such function to log.
        """
        self._switch_function(name, True)

    def disable_function_logging(self, name: str) -> None:
        """Do not log the function `name`, though the rest of this module may be. Raises ValueError likewise."""
        self._switch_function(name, False)

    def _switch_function(self, name: str, on: bool) -> None:
        if name not in self._loggable() and not any(mark.function.__name__ == name for mark in _MARKS.values()):
            raise ValueError(
                f"name={name!r}: {type(self).__name__} has no such function to log; "
                f"choose one of {', '.join(sorted(self._loggable()))}, or mark it with @log_io"
            )
        switch = self._log or LogSwitch()
        switch.single[name] = on
        if on and switch.all:
            del switch.single[name]
        self._set_switch(switch)

    def _logging_modules(self, recursive: bool) -> Iterator[LoggingModule]:
        modules = self.modules() if recursive else [self]
        return (module for module in modules if isinstance(module, LoggingModule))

    def _loggable(self) -> set[str]:
        """Names of the methods that can be logged."""
        marked = {name for cls in type(self).__mro__ for name, f in vars(cls).items() if hasattr(f, "__log_io__")}
        return marked | {"forward"}

    def _set_switch(self, switch: LogSwitch) -> None:
        """Store the switch, and put a starter before each method to log, so that a call of it begins a session."""
        for name in self._loggable():
            if _is_starter(self.__dict__.get(name)):
                del self.__dict__[name]
            if switch.on(name) and name not in self.__dict__:  # what someone else has put there stays
                self.__dict__[name] = _starter(self, name)
        self.__dict__.pop("_log", None)
        if switch.all or switch.single:
            self.__dict__["_log"] = switch

    def __getstate__(self) -> dict[str, Any]:
        state = {}
        for name, value in self.__dict__.items():
            if not _is_starter(value):
                state[name] = value
            elif getattr(value.__starts__, "__self__", self) is not self or value.__name__ != name:
                state[name] = value.__starts__  # a method that was stored while its logging was on
            # Else it belongs to this very object: the copy makes its own.
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._log is not None:
            switch = LogSwitch()
            switch.all, switch.single = self._log.all, dict(self._log.single)
            self._set_switch(switch)


def _starter(module: LoggingModule, name: str) -> Callable:
    """A function that calls the module's method `name` within a live session, beginning one if there is none."""

    @functools.wraps(getattr(type(module), name))
    def start(*args, **kwargs):
        method = _method(module, name)  # looked up now: the class may have been reloaded
        if torch.compiler.is_compiling() or getattr(_thread, "live", None):
            return method(*args, **kwargs)
        with _LiveSession():
            return method(*args, **kwargs)

    start.__starts__ = _method(module, name)
    return start


def _method(module: nn.Module, name: str) -> Callable:
    """The method as the class has it, bound, whatever stands in its way on the module itself."""
    return inspect.getattr_static(type(module), name).__get__(module, type(module))


def _is_starter(value: Any) -> bool:
    return inspect.isfunction(value) and hasattr(value, "__starts__")


_thread = threading.local()


class _LiveSession(_Session):
    """Prints the calls of modules whose logging is on, indented by how many printed calls are open."""

    def __init__(self):
        super().__init__()
        self.shown: list[bool] = []  # for each open call, whether it is printed
        self.owners: list[nn.Module | None] = []
        self.error_shown = False

    def __enter__(self) -> Self:
        _thread.live = self
        return super().__enter__()

    def __exit__(self, kind, error, traceback) -> None:
        _thread.live = None
        super().__exit__(kind, error, traceback)

    def opened(self, frame: FrameType) -> bool:
        owner = _owner(frame)
        if owner is None and id(frame.f_code) not in _MARKS:
            return False
        name = frame.f_code.co_name
        # A plain function belongs to the module that calls it.
        caller = owner if owner is not None else (self.owners[-1] if self.owners else None)
        switch = getattr(caller, "_log", None)
        shown = isinstance(switch, LogSwitch) and switch.on(name)
        if shown:
            label = name if owner is None else f"{type(owner).__name__}.{name}"
            self._print("▸", label, *(argument.text() for argument in _arguments(frame)))
        self.shown.append(shown)
        self.owners.append(caller)
        self.error_shown = False
        return True

    def closed(self, frame: FrameType, output: Any, failed: bool) -> None:
        shown = self.shown.pop()
        self.owners.pop()
        if not shown:
            return
        if not failed:
            info = describe(output)
            self._print("◂", _output_text(info, _output_names(frame, info)))
        elif not self.error_shown:  # once, at the innermost printed call: the outer ones end for the same reason
            self._print("✗", f"exception in {frame.f_code.co_name}, line {frame.f_lineno}")
            self.error_shown = True

    def _print(self, sign: str, label: str, *texts: str) -> None:
        depth = sum(self.shown)
        print("│ " * depth + sign + " " + "  ".join([label + " " * bool(texts), *texts]))


# --------------------------------------------------------------------------------------------------------------------
# The call tree of a forward pass


@dataclass
class Call:
    """One recorded call: of a module (`function` is "forward") or of a marked method or function."""

    path: str  # of the module inside the traced model; "" for the model itself
    owner: str  # class of that module; "" for a plain function
    function: str
    params: int  # of the module, shared ones once; 0 for methods and functions
    inputs: tuple[Argument, ...]
    output: Info | None = None
    output_names: list[str | None] = field(default_factory=list)
    failed: bool = False
    children: list[Call] = field(default_factory=list)
    dims: Dims | None = None

    @property
    def is_module(self) -> bool:
        return bool(self.owner) and self.function == "forward"

    def outputs_text(self, dims: Dims | None = None) -> str:
        if self.failed:
            return "✗"
        return "" if self.output is None else _output_text(self.output, self.output_names, dims)

    def inputs_text(self, dims: Dims | None = None) -> str:
        """The arguments; those left at their defaults are not listed, a lone tensor goes without its name."""
        given = [argument for argument in self.inputs if not argument.default]
        if len(given) == 1 and isinstance(given[0].info, TensorInfo):
            return render(given[0].info, dims)
        return "  ".join(argument.text(dims) for argument in given)

    def title(self) -> str:
        """Where in the model: `layers.0.attn`, `layers.0.attn › project()`."""
        path = self.path or self.owner
        return path if self.is_module else f"{path} › {self.function}()" if self.owner else f"{self.function}()"


def trace(model: nn.Module, names: Any = None) -> Trace:
    """Record the calls of a model's modules, and of all functions marked `@log_io`, within a `with` block.

    names: a config (its dim, num_q_heads, num_kv_heads, head_dim, mlp_hidden, vocab_size become D H G K F V) or a
    dict such as {"D": 64, "H": 8}; with it, shapes are shown in letters. B and T are those of the first 2-D integer
    tensor that goes in (the tokens), or of the first (B, T, D). Letters go by size alone: see `Dims`.

    print(tr) shows the tree; `tr.df()` and `tr.to_json()` give it as data. If the block raises, the exception carries
    a note saying in which module, at which line, with which shapes.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={type(model).__name__}: trace watches an nn.Module, such as trace(GPT(cfg))")
    return Trace(model, names)


class Trace(_Session):
    """What `trace` returns. `calls` holds the outermost calls in the order they were made."""

    def __init__(self, model: nn.Module, names: Any = None):
        super().__init__()
        self.model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
        self.dims = Dims(_sizes(names)) if names is not None else None
        self.calls: list[Call] = []
        self._paths = {id(module): path for path, module in self.model.named_modules()}
        self._counts: dict[int, int] = {}
        self._open: list[Call] = []
        self._left: dict[int, tuple[FrameType, Call]] = {}  # frames that an exception left, by id (the frame keeps it)
        self._last_good: Call | None = None
        self._stance: Any = None

    def __enter__(self) -> Self:
        if "torch._dynamo" in sys.modules:  # a compiled model runs no Python to watch: run it plainly meanwhile
            self._stance = torch.compiler.set_stance("force_eager")
            self._stance.__enter__()
        return super().__enter__()

    def __exit__(self, kind, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._left |= {id(frame): (frame, call) for frame, call in zip(self.frames, self._open, strict=False)}
        super().__exit__(kind, error, traceback)
        if self._stance is not None:
            self._stance.__exit__(kind, error, traceback)
        if error is not None:
            note = self._note(traceback)
            if note:
                error.add_note(note)
        self._open.clear()
        self._left.clear()

    def opened(self, frame: FrameType) -> bool:
        owner, name = _owner(frame), frame.f_code.co_name
        if isinstance(owner, nn.Identity) or (owner is None and id(frame.f_code) not in _MARKS):
            return False
        if not self._open and id(owner) not in self._paths:
            return False  # not a part of this model
        path = self._paths.get(id(owner), self._open[-1].path if self._open and owner is None else "")
        params = self._params(owner) if owner is not None and name == "forward" else 0
        call = Call(path, type(owner).__name__ if owner is not None else "", name, params, _arguments(frame))
        self._add(call)
        return True

    def _params(self, module: nn.Module) -> int:
        if id(module) not in self._counts:
            self._counts[id(module)] = sum(parameter.numel() for parameter in module.parameters())
        return self._counts[id(module)]

    def _add(self, call: Call) -> None:
        if self._open:
            call.dims = self._open[-1].dims
            self._open[-1].children.append(call)
        else:
            call.dims = self.dims = _with_batch(self.dims, call.inputs)
            self.calls.append(call)
        self._open.append(call)

    def closed(self, frame: FrameType, output: Any, failed: bool) -> None:
        call = self._open.pop()
        call.failed = failed
        if failed:
            self._left[id(frame)] = (frame, call)
        else:
            call.output = describe(output)
            call.output_names = _output_names(frame, call.output)
            self._last_good = call

    def _note(self, traceback: TracebackType | None) -> str:
        """Where the exception was raised: the chain of calls, the line, the inputs of the innermost call."""
        frames = []
        while traceback is not None:
            frames.append((traceback.tb_frame, traceback.tb_lineno))
            traceback = traceback.tb_next
        scopes = [i for i, (frame, _) in enumerate(frames) if id(frame) in self._left]
        if not scopes:
            return ""
        _, call = self._left[id(frames[scopes[-1]][0])]
        # Below the innermost call stand torch's own frames; the learner's own line is the last one outside of torch.
        own = [(frame, line) for frame, line in frames if not frame.f_code.co_filename.startswith(_TORCH)]
        frame, line = own[-1]
        path = Path(frame.f_code.co_filename)
        file = "notebook cell, line " if "ipykernel" in path.parent.name else f"{path.name}:"
        lines = [
            f"✗ {call.title()}     {file}{line}",
            f"    {linecache.getline(frame.f_code.co_filename, line).strip()}",
            *(f"  {argument.text(call.dims)}{_sizes_beside(argument.info, call.dims)}" for argument in call.inputs),
        ]
        if self._last_good is not None:
            good = self._last_good
            lines.append(f"  last good: {good.title()} → {good.outputs_text(good.dims)}")
        return "\n".join(lines)

    def __str__(self) -> str:
        if not self.calls:
            return f"{type(self.model).__name__}: nothing recorded (call the model inside the `with trace(...)` block)"
        lines: list[str] = []
        legend = None
        for group in _fold(self.calls, ""):
            call = group[0]
            if legend != (legend := call.dims.legend() if call.dims else ""):
                lines += [header] if (header := self._header(legend)) else []
            lines.extend(_align(list(_rows(group, "", 0))))
        return "\n".join(lines)

    __repr__ = __str__

    def _header(self, legend: str) -> str:
        parameter = next(self.model.parameters(), None)
        kind = "" if parameter is None else f"{str(parameter.dtype).removeprefix('torch.')} {parameter.device}"
        return "   ".join(filter(None, [legend, kind]))

    def df(self):
        """The calls as a pandas table, one row each, in order: depth, path, class, function, params, shapes."""
        import pandas as pd

        return pd.DataFrame(list(self._records()))

    def to_json(self) -> str:
        """The same rows as JSON text."""
        return json.dumps(list(self._records()), ensure_ascii=False, indent=1)

    def _records(self) -> Iterator[dict[str, Any]]:
        pending = [(call, 0) for call in reversed(self.calls)]
        while pending:
            call, depth = pending.pop()
            yield {
                "depth": depth,
                "path": call.path,
                "class": call.owner,
                "function": call.function,
                "params": call.params,
                "inputs": "  ".join(argument.text() for argument in call.inputs),
                "outputs": call.outputs_text(),
                "inputs_named": "  ".join(argument.text(call.dims) for argument in call.inputs),
                "outputs_named": call.outputs_text(call.dims),
                "failed": call.failed,
            }
            pending.extend((child, depth + 1) for child in reversed(call.children))


_TORCH = str(Path(torch.__file__).parent) + os.sep
_LETTERS = {
    "dim": "D",
    "num_q_heads": "H",
    "num_kv_heads": "G",
    "head_dim": "K",
    "mlp_hidden": "F",
    "vocab_size": "V",
}


def _sizes_beside(info: Info, dims: Dims | None) -> str:
    return f" = {render(info)}" if dims and isinstance(info, TensorInfo) else ""


def _sizes(names: Any) -> dict[str, int]:
    """Letters and sizes from a dict of them or from a config's fields."""
    if isinstance(names, dict):
        wrong = [name for name, size in names.items() if not isinstance(size, int)]
        if wrong:
            raise ValueError(f"names[{wrong[0]!r}]={names[wrong[0]]!r}: a size must be an int, such as {{'D': 64}}")
        return dict(names)
    sizes = {letter: getattr(names, name, None) for name, letter in _LETTERS.items()}
    sizes = {letter: size for letter, size in sizes.items() if isinstance(size, int)}
    if not sizes:
        raise ValueError(f"names={names!r}: give a config with fields such as dim, or a dict such as {{'D': 64}}")
    return sizes


def _with_batch(dims: Dims | None, inputs: tuple[Argument, ...]) -> Dims | None:
    """The letters with B and T read from an outermost call's inputs, where these show them."""
    if dims is None:
        return None
    tensors = [argument.info for argument in inputs if isinstance(argument.info, TensorInfo) and argument.info.shape]
    tokens = [t for t in tensors if len(t.shape) == 2 and "int" in t.dtype]
    hidden = [t for t in tensors if len(t.shape) == 3 and t.shape[-1] == dims.sizes.get("D")]
    if not tokens + hidden:
        return dims
    batch, length = (tokens + hidden)[0].shape[:2]
    return Dims({"B": batch, "T": length} | {k: v for k, v in dims.sizes.items() if k not in ("B", "T")})


def _relative(path: str, parent: str) -> str:
    return path[len(parent) + 1 :] if parent and path.startswith(parent + ".") else path


def _key(call: Call, parent: str) -> tuple:
    """Equal for calls that look the same but for one index in their paths (`layers.0`, `layers.1`)."""
    path = re.sub(r"\d+(?=\D*$)", "#", _relative(call.path, parent))
    children = tuple(_key(child, call.path) for child in call.children)
    names = tuple(call.output_names)
    return path, call.owner, call.function, call.params, call.inputs, call.output, names, call.failed, children


def _fold(calls: list[Call], parent: str) -> list[list[Call]]:
    """Consecutive calls that look the same, in groups."""
    groups: list[list[Call]] = []
    for call in calls:
        if groups and _key(groups[-1][0], parent) == _key(call, parent):
            groups[-1].append(call)
        else:
            groups.append([call])
    return groups


def _rows(group: list[Call], parent: str, depth: int) -> Iterator[tuple[str, str]]:
    """(label, shapes) of a group of equal calls and, indented, of the calls inside the first of them."""
    call = group[0]
    label = "│ " * depth + "▸ " + _label(group, parent)
    yield label, " → ".join(filter(None, [call.inputs_text(call.dims), call.outputs_text(call.dims)]))
    for inner in _fold(call.children, call.path):
        yield from _rows(inner, call.path, depth + 1)


def _label(group: list[Call], parent: str) -> str:
    first, last = group[0], group[-1]
    text = f"{first.function}()"
    if first.is_module:
        text = _relative(first.path, parent) or first.owner
        index = re.search(r"\d+(?=\D*$)", last.path)
        if last.path != first.path and index:
            text = re.sub(r"\d+(?=\D*$)", rf"\g<0>…{index[0]}", text)
    if len(group) > 1:
        text += f" ×{len(group)}"
    if first.is_module and first.path:
        text += f"  {first.owner}"
    each = " each" if last.path != first.path else ""
    return text + (f" · {first.params:,} params{each}" if first.params else "")


def _align(rows: list[tuple[str, str]]) -> list[str]:
    width = min(max(len(label) for label, _ in rows), 56)
    return [f"{label:<{width}}   {shapes}".rstrip() for label, shapes in rows]


# --------------------------------------------------------------------------------------------------------------------
# Source


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
