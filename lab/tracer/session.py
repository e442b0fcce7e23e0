"""`trace`: record what runs in a model, give its dimensions names, show it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from lab.tracer import probe as probing
from lab.tracer.cost import flops, number, saved_bytes
from lab.tracer.record import Op, Recorder, Scope
from lab.tracer.sizes import LETTERS, Namer, field_of, sizes_of
from lab.tracer.values import Value
from lab.tracer.view import LEVELS, Row, View, inputs_of, outputs_of, text_lines

MAX_PROBED = 4  # outermost calls that are made again with other sizes; later ones reuse what was learned


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
        self.names, self._probe = names, probe
        self.calls: list[Scope] = []
        self.values: list[Value] = []
        self.notes: list[str] = []  # what could not be found out, and why
        self.probes: dict[int, list[probing.Probe]] = {}  # by index of the call
        self.namers: list[Namer] = []  # of each call
        self.card: Any = None  # what is known of the exception that ended the session
        self._params = _Params(self.model)
        self._stance: Any = None

    # ---- the session

    def __enter__(self) -> Self:
        if "torch._dynamo" in sys.modules:  # a compiled model runs no Python to watch: run it plainly meanwhile
            self._stance = torch.compiler.set_stance("force_eager")
            self._stance.__enter__()
        letters = sizes_of(self.names) if self.names is not None else {}
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
        self._find_names()
        if error is not None and self.calls:
            from lab.tracer.card import make_card

            self.card = make_card(self, error, traceback, recorder.error)
            if self.card is not None:
                error.add_note(str(self.card))
        for call in self.calls:
            call.replay = None  # it holds tensors
        if error is None and self.check:
            from lab.tracer.check import check_signatures

            check_signatures(self)

    def _find_names(self) -> None:
        letters = sizes_of(self.names) if self.names is not None else {}
        for index, call in enumerate(self.calls):
            if self._probe and index < MAX_PROBED:
                self.probes[index] = probing.run_probes(call, self.names)
            probes = self.probes.get(index, [])
            namer = Namer([letters | call.replay.letters, *(probe.letters for probe in probes)])
            self.namers.append(namer)
            if self.names is not None or probes:
                _give_symbols(call, probes, namer)

    # ---- what was seen

    def text(self, level: str | None = None, full: bool = False) -> str:
        """The trace as text. full=True opens what is shown closed."""
        if not self.calls:
            return f"{type(self.model).__name__}: nothing recorded (call the model inside the `with trace(...)` block)"
        return "\n".join([self.header(), *text_lines(self.rows(level), full), *self.notes])

    def header(self, index: int = 0) -> str:
        """Class, sizes as seen, precision, device, parameters, FLOPs and bytes saved for backward of one call."""
        call = self.calls[index]
        parameter = next(self.model.parameters(), None)
        kind = "" if parameter is None else f"{_short(parameter.dtype)} {parameter.device}"
        costs = [
            f"{self._params.total():,} params" if self._params.total() else "",
            number(flops(call), "FLOP") if flops(call) else "",
            f"{number(saved_bytes(call), 'B')} saved for backward" if saved_bytes(call) else "",
        ]
        title = "  ".join(filter(None, [call.owner or call.function, self.namers[index].legend()]))
        return "   ".join(filter(None, [title, kind, " · ".join(filter(None, costs))]))

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from lab.tracer.html import page

        return page(self)

    def rows(self, level: str | None = None) -> list[Row]:
        """What the text shows, as a tree of rows."""
        return View(level or self.level, self._params.text, self.stats, self.timing).rows(self.calls)

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


def _give_symbols(call: Scope, probes: list, namer: Namer) -> None:
    for value in _values_of(call):
        if value.shape is None or value.symbols is not None:
            continue
        twins = [probe.twins.get(value.index) for probe in probes]
        value.runs = tuple(
            (size, *(None if twin is None or twin.shape is None else twin.shape[d] for twin in twins))
            for d, size in enumerate(value.shape)
        )
        value.symbols = tuple(namer.name(sizes) for sizes in value.runs)


def _values_of(call: Scope) -> Iterator[Value]:
    for item in call.walk():
        if isinstance(item, Op):
            yield from item.inputs()
            yield from item.outputs()
        else:
            yield from inputs_of(item)
            yield from outputs_of(item)


class _Params:
    """Parameter counts by path, each parameter once: where it stands first. Elsewhere it is `tied→`."""

    def __init__(self, model: nn.Module):
        self._own: dict[str, int] = {}
        self._tied: dict[str, str] = {}
        first: dict[int, str] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                full = f"{path}.{name}" if path else name
                home = first.setdefault(id(parameter), full)
                if home == full:
                    self._own[full] = 0 if nn.parameter.is_lazy(parameter) else parameter.numel()
                else:
                    self._tied[full] = home

    def total(self) -> int:
        return sum(self._own.values())

    def text(self, path: str) -> str:
        prefix = f"{path}." if path else ""
        count = sum(size for name, size in self._own.items() if name.startswith(prefix))
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
    return Trace(model, level, names, probe, stats, timing, check, only)
