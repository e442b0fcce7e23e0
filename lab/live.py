"""Live logging: modules that print their calls as they happen.

    class MQA(LoggingModule):
        @log_io                                   # marks a method; returns the very same function
        def forward(self, x, ctx=None): ...

    attn.enable_logging(); attn(x)                # prints this module's marked calls

How it works. `@log_io` notes the function's code object and changes nothing else, so a marked function costs nothing
and torch.compile sees the plain function. While something is logged, `sys.setprofile` reports each Python call of this
thread, and the frame of a call of interest gives the arguments under their true names. The profile function is set
when the outermost logged call begins and taken away when it ends, by an exception too.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

import torch
from torch import nn

from lab.tracer.frames import MARKS, arguments_of, ends_normally, owner_of, set_profile
from lab.tracer.source import returned_names
from lab.tracer.values import describe, output_text


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
        if name not in self._loggable() and not any(mark.function.__name__ == name for mark in MARKS.values()):
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


class _LiveSession:
    """Prints the calls of modules whose logging is on, indented by how many printed calls are open.

    A profiler that was there before keeps receiving its events meanwhile and is put back at the end.
    """

    def __init__(self):
        self.frames: list[FrameType] = []  # the calls that are open, outermost first; for each of them:
        self.shown: list[bool] = []  # whether it is printed
        self.owners: list[nn.Module | None] = []  # the module it belongs to
        self.before: Any = None
        self.error_shown = False

    def __enter__(self) -> Self:
        _thread.live = self
        self.before = sys.getprofile()
        sys.setprofile(self._profile)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        _thread.live = None
        if sys.getprofile() in (self._profile, None):
            set_profile(self.before)
        self.frames.clear()

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            if frame.f_code.co_name == "forward" or id(frame.f_code) in MARKS:
                self._opened(frame)
        elif event == "return" and self.frames and self.frames[-1] is frame:
            self.frames.pop()
            self._closed(frame, arg, failed=not ends_normally(frame))
        if callable(self.before):
            self.before(frame, event, arg)

    def _opened(self, frame: FrameType) -> None:
        code, values = frame.f_code, frame.f_locals
        owner = owner_of(code, values)
        if owner is None and id(code) not in MARKS:
            return
        name = code.co_name
        # A plain function belongs to the module that calls it.
        caller = owner if owner is not None else (self.owners[-1] if self.owners else None)
        switch = getattr(caller, "_log", None)
        shown = isinstance(switch, LogSwitch) and switch.on(name)
        if shown:
            label = name if owner is None else f"{type(owner).__name__}.{name}"
            self._print("▸", label, *(argument.text() for argument in arguments_of(code, values, owner)))
        self.frames.append(frame)
        self.shown.append(shown)
        self.owners.append(caller)
        self.error_shown = False

    def _closed(self, frame: FrameType, output: Any, failed: bool) -> None:
        shown = self.shown.pop()
        self.owners.pop()
        if not shown:
            return
        if not failed:
            self._print("◂", output_text(describe(output), returned_names(frame.f_code, frame.f_lineno)))
        elif not self.error_shown:  # once, at the innermost printed call: the outer ones end for the same reason
            self._print("✗", f"exception in {frame.f_code.co_name}, line {frame.f_lineno}")
            self.error_shown = True

    def _print(self, sign: str, label: str, *texts: str) -> None:
        depth = sum(self.shown)
        print("│ " * depth + sign + " " + "  ".join([label + " " * bool(texts), *texts]))
