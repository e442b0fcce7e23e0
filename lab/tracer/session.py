"""`trace`: record what runs in a model, give its dimensions names, show it."""

from __future__ import annotations

import json
import sys
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from lab.tracer import probe as probing
from lab.tracer.columns import text_lines
from lab.tracer.cost import flops, number, saved_bytes, uncounted
from lab.tracer.naming import Names
from lab.tracer.places import clean_path
from lab.tracer.record import Recorder, Scope
from lab.tracer.sizes import LETTERS, Namer, field_of, sizes_of
from lab.tracer.values import Value
from lab.tracer.view import LEVELS, Row, View, letters_in, no_match


class Trace:
    """What `trace` returns. `calls` holds the outermost calls in the order they were made."""

    def __init__(
        self,
        model: nn.Module,
        level: str,
        names: Any,
        probe: bool,
        stats: bool,
        timing: bool,
        check: bool,
        only: str | None,
    ):
        self.model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
        self.level, self.only, self.check = level, only, check
        self.stats, self.timing = stats, timing
        self.names, self.probe = names, probe  # probe: whether calls may be made again
        self.calls: list[Scope] = []
        self.values: list[Value] = []
        self.notes: list[str] = []  # what could not be found out, and why
        self.probes: dict[int, list[probing.Probe]] = {}  # by index of the call
        self.namers: list[Namer] = []  # of each call
        self.card: Any = None  # what is known of the exception that ended the session
        self.params = _Params(self.model)
        self._stance: Any = None

    # ---- the session

    def __enter__(self) -> Self:
        letters = sizes_of(self.names) if self.names is not None else {}
        if "torch._dynamo" in sys.modules:  # a compiled model runs no Python to watch: run it plainly meanwhile
            self._stance = torch.compiler.set_stance("force_eager")
            self._stance.__enter__()
        measure = None
        if self.stats:
            from lab.tracer.stats import measure
        self._recorder = Recorder(self.model, stats=measure, keep_inputs=probing.keep_inputs(letters))
        self._recorder.__enter__()
        return self

    def __exit__(self, kind, error: BaseException | None, traceback: TracebackType | None) -> None:
        recorder = self._recorder
        try:
            recorder.__exit__(kind, error, traceback)
        finally:
            if self._stance is not None:
                self._stance.__exit__(kind, error, traceback)
        self.calls, self.values = recorder.calls, recorder.values
        self.notes += recorder.notes
        try:
            self._find_names(error)
            if error is not None:
                self._explain(error, traceback, recorder.error)
        except Exception as own:
            if error is None:
                raise
            # What goes wrong here must not take the place of the exception that it was to explain.
            error.add_note(f"(the tracer could not explain this exception: {type(own).__name__}: {own})")
        finally:
            for call in self.calls:
                call.replay = None  # it holds tensors
        if self.stats:
            from lab.tracer.stats import first_nonfinite

            self.notes += filter(None, [first_nonfinite(self)])
        if error is None and self.check:
            from lab.tracer.check import check_signatures

            check_signatures(self)

    def _explain(self, error: BaseException, traceback: TracebackType | None, recorded: Any) -> None:
        from lab.tracer.card import make_card

        self.card = make_card(self, error, traceback, recorded) if self.calls else None
        if self.card is not None:
            error.add_note(str(self.card))

    def _find_names(self, error: BaseException | None) -> None:
        interrupted = error is not None and not isinstance(error, Exception)  # someone is waiting for it to end
        found = Names(self.calls, self.values, self.names, self.probe and not interrupted)
        self.probes, self.namers = found.probes, found.namers
        self.notes += found.notes

    # ---- what was seen

    def text(self, level: str | None = None, full: bool = False) -> str:
        """The trace as text. full=True opens what is shown closed."""
        if not self.calls:
            return f"{type(self.model).__name__}: nothing recorded (call the model inside the `with trace(...)` block)"
        rows = self.rows(level)
        return "\n".join([*self.headers(rows), *text_lines(rows, full), *self.remarks(rows)])

    def headers(self, rows: list[Row]) -> list[str]:
        """The line above the rows; several where the calls that are shown differ in their sizes or costs."""
        calls = range(len(self.calls)) if self.only is None else [0]
        return list(dict.fromkeys(self.header(index, rows) for index in calls))

    def remarks(self, rows: list[Row]) -> list[str]:
        """The lines below the rows."""
        missed = [] if rows or self.only is None else [no_match(self.only, self.calls)]
        names = sorted({name for call in self.calls for name in uncounted(call)})
        missed += [f"FLOPs of {', '.join(names)} not counted"] if names else []
        if self.card is not None:  # what the probes of a failed call did not find out says nothing beside it
            return [*missed, str(self.card)]
        return missed + self.notes

    def header(self, index: int = 0, rows: list[Row] | None = None) -> str:
        """Class, sizes as seen, precision, device, parameters, FLOPs and bytes saved for backward of one call.

        Of the sizes, those whose letters occur in the rows are listed.
        """
        call = self.calls[index]
        shown = letters_in(self.rows() if rows is None else rows)
        sizes = " ".join(f"{name}={sizes[0]}" for name, sizes in self.namers[index].vectors.items() if name in shown)
        parameter = next(self.model.parameters(), None)
        kind = "" if parameter is None else f"{_short(parameter.dtype)} {parameter.device}"
        costs = [
            f"{self.params.total():,} params" if self.params.total() else "",
            number(flops(call), "FLOP") if flops(call) else "",
            f"{number(saved_bytes(call), 'B')} saved for backward" if saved_bytes(call) else "",
        ]
        title = "  ".join(filter(None, [call.owner or call.function, sizes and f"{sizes} (as seen)"]))
        return "   ".join(filter(None, [title, kind, " · ".join(filter(None, costs))]))

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from lab.tracer.html import page

        return page(self)

    def rows(self, level: str | None = None) -> list[Row]:
        """What the text shows, as a tree of rows."""
        return View(level or self.level, self.params.text, self.stats, self.timing, self.only).rows(self.calls)

    def df(self):
        """Every scope and operation as a pandas table, one row each, in the order of execution."""
        import pandas as pd

        from lab.tracer.table import records

        return pd.DataFrame(records(self))

    def to_json(self) -> str:
        """The same rows as JSON text."""
        from lab.tracer.table import records

        return json.dumps(records(self), ensure_ascii=False, indent=1)

    def source(self, function: Any) -> Any:
        """A function's source with the shapes that were seen behind each line, and wrong shape comments marked."""
        from lab.tracer.annotate import annotated

        return annotated(self, function)

    @property
    def lints(self) -> list:
        """What looks like a mistake though it ran: see `lab/tracer/lints.py` for the list."""
        from lab.tracer.lints import find

        return find(self)


def _short(dtype: torch.dtype) -> str:
    text = str(dtype).removeprefix("torch.")
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}.get(text, text)


class _Params:
    """Parameter counts by path, each parameter once: where it stands first. Elsewhere it is `tied→`."""

    def __init__(self, model: nn.Module):
        self._own: dict[str, int] = {}
        self._tied: dict[str, str] = {}
        first: dict[int, str] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            path = clean_path(path)
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                full = f"{path}.{name}" if path else name
                home = first.setdefault(id(parameter), full)
                if home == full:
                    self._own[full] = 0 if nn.parameter.is_lazy(parameter) else parameter.numel()
                else:
                    self._tied[full] = home

    def total(self) -> int:
        return sum(self._own.values())

    def count(self, path: str) -> int:
        """Of the module at a path, with all inside it."""
        prefix = f"{path}." if path else ""
        return sum(size for name, size in self._own.items() if name.startswith(prefix))

    def text(self, path: str) -> str:
        count, prefix = self.count(path), f"{path}." if path else ""
        tied = [home for name, home in self._tied.items() if name.startswith(prefix) and path]
        parts = [f"{count:,} params" if count else "", f"tied→{tied[0].rsplit('.', 1)[0]}" if tied else ""]
        return " · ".join(filter(None, parts))


def trace(
    model: nn.Module,
    level: str = "assign",
    names: Any = None,
    *,
    probe: bool = True,
    stats: bool = False,
    timing: bool = False,
    check: bool = False,
    only: str | None = None,
) -> Trace:
    """Record what runs in a model within a `with` block."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={type(model).__name__}: trace watches an nn.Module, such as trace(GPT(cfg))")
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is unknown; choose one of {', '.join(LEVELS)}")
    if names is None:
        names = next((getattr(model, name) for name in ("cfg", "config") if hasattr(model, name)), None)
        names = names if names is not None and any(field_of(names, letter) for letter in LETTERS) else None
    if names is not None:
        sizes_of(names)  # raises here, at the call, if it holds no sizes
    return Trace(model, level, names, probe, stats, timing, check, only)
