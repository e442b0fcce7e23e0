"""Names for the dimensions of everything that a session recorded."""

from __future__ import annotations

import re
from typing import Any

import torch

from lab.tracer.probe import MAX_PROBED, Probe, align, more_probes, run_probes
from lab.tracer.record import Op, Scope
from lab.tracer.sizes import Namer, sizes_of
from lab.tracer.values import Value

Sizes = tuple["int | None", ...]  # of one dimension: in the recorded run and in each probe


class Names:
    """What was found out. `probes` by index of the call, `namers` one for each call, `notes` what was not, and why."""

    def __init__(self, calls: list[Scope], values: list[Value], config: Any, probe: bool):
        self.calls, self.values, self.config = calls, values, config
        self.letters = sizes_of(config) if config is not None else {}
        self.probes: dict[int, list[Probe]] = {}
        self.namers: list[Namer] = []
        self.notes: list[str] = []
        for index, call in enumerate(calls):
            self._name(index, call, probe)

    def _name(self, index: int, call: Scope, probe: bool) -> None:
        own = self.letters | call.replay.letters
        learned, twins = self._learned(index, call) if self.probes else (None, {})
        if learned is not None and (len(self.probes) >= MAX_PROBED or self._nothing_new(index, call, twins)):
            namer = Namer([own, *self.namers[learned].runs])
            runs = {i: tuple((None, *sizes) for sizes in twin.runs) for i, twin in twins.items()}
        elif probe and len(self.probes) < MAX_PROBED:
            namer, runs = self._probed(index, call, own)
        else:
            namer, runs = Namer([own]), {}
        self.namers.append(namer)
        if self.config is not None or len(namer.runs) > 1:
            _give_symbols(self._values_of(index), runs, namer)

    def _values_of(self, index: int) -> list[Value]:
        """The tensors that were first seen in one call."""
        stop = self.calls[index + 1].first_value if index + 1 < len(self.calls) else len(self.values)
        return self.values[self.calls[index].first_value : stop]

    # ---- from runs with other sizes

    def _probed(self, index: int, call: Scope, own: dict[str, int]) -> tuple[Namer, dict[int, tuple[Sizes, ...]]]:
        self.probes[index] = []
        if call.replay.module is None:
            self.notes.append(f"no runs with other sizes: the inputs of {call.title()} can't be copied")
            return Namer([own]), {}
        try:
            probes = self.probes[index] = run_probes(call, self.config)
        except Exception as problem:  # the trace is worth having without them, and an error under way must not be lost
            self.notes.append(f"no runs with other sizes: {type(problem).__name__}: {problem}")
            return Namer([own]), {}
        self.notes += [note for note in _notes(probes) if note not in self.notes]
        values = self._values_of(index)
        namer, runs = Namer([own, *(probe.letters for probe in probes)]), _runs(values, probes)
        open_letters = _open_letters(values, runs, namer)
        more = more_probes(call, self.config, probes, open_letters) if open_letters else []
        if more:
            probes += more
            namer, runs = Namer([own, *(probe.letters for probe in probes)]), _runs(values, probes)
        for sizes in _data_sizes(call, runs):
            namer.leave_unnamed(sizes)
        return namer, runs

    # ---- from calls that were named before

    def _learned(self, index: int, call: Scope) -> tuple[int | None, dict[int, Value]]:
        """The probed call that this one resembles most, and its tensors by the index of those in their place here."""
        best, found = None, Probe("", {})
        for earlier in reversed(self.probes):
            match = Probe("", {}, call=self.calls[earlier])
            align(call, match)
            if (match.complete, match.aligned) > (found.complete, found.aligned):
                best, found = earlier, match
            if found.complete:
                break
        return best, found.twins

    def _nothing_new(self, index: int, call: Scope, twins: dict[int, Value]) -> bool:
        """Whether each tensor here has a twin of the same shape there."""
        values = self._values_of(index)
        return all(v.index in twins and twins[v.index].shape == v.shape for v in values) and not call.failed


def _notes(probes: list[Probe]) -> list[str]:
    """What is to be said of the runs that did not go as the recorded one; nothing of those that others stand in for."""
    known = {letter for probe in probes if probe.complete for letter in probe.what.split("=")[:1]}
    return [p.note() for p in probes if p.note() and (p.error is not None or p.what.split("=")[0] not in known)]


def _runs(values: list[Value], probes: list[Probe]) -> dict[int, tuple[Sizes, ...]]:
    """By index of a tensor, for each of its dimensions: the recorded size and that in each probe."""
    found = {}
    for value in values:
        twins = [probe.twins.get(value.index) for probe in probes]
        shapes = [None if twin is None else twin.shape for twin in twins]
        found[value.index] = tuple(
            (size, *(None if shape is None else shape[d] for shape in shapes))
            for d, size in enumerate(value.shape or ())
        )
    return found


# What gives as many rows as the data say.
DATA_SIZED = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "_unique2"}


def _data_sizes(call: Scope, runs: dict[int, tuple[Sizes, ...]]) -> set[Sizes]:
    """The sizes of what operations such as `nonzero` and `x[mask]` gave, where nothing that went in has them."""
    found = set()
    for op in call.walk():
        if not isinstance(op, Op) or not (op.name in DATA_SIZED or _is_masked(op)):
            continue
        given = {sizes for value in op.inputs() for sizes in runs.get(value.index, ())}
        found |= {sizes for value in op.outputs() for sizes in runs.get(value.index, ())} - given
    return found


def _is_masked(op: Op) -> bool:
    indexes = op.inputs()[1:] if op.name == "__getitem__" else []
    return any(index.dtype == torch.bool for index in indexes) or (op.name == "where" and len(op.args) == 1)


def _open_letters(values: list[Value], runs: dict[int, tuple[Sizes, ...]], namer: Namer) -> set[str]:
    """The letters in names that are ambiguous or intricate."""
    unsure = {sizes for value in values for sizes in runs[value.index] if not namer.is_sure(sizes)}
    texts = [text for sizes in unsure for text in namer.fits(sizes)]
    return {name for text in texts for name in re.split(r"[^\w]+", text)} & namer.vectors.keys()


def _give_symbols(values: list[Value], runs: dict[int, tuple[Sizes, ...]], namer: Namer) -> None:
    unknown = (None,) * (len(namer.runs) - 1)
    named: dict[tuple, tuple] = {}  # most shapes occur many times
    for value in values:
        if value.shape is None:
            continue
        key = value.shape, runs.get(value.index)
        if key not in named:
            others = [sizes[1:] for sizes in key[1]] if key[1] is not None else [unknown] * len(value.shape)
            found = tuple((size, *rest) for size, rest in zip(value.shape, others))
            named[key] = found, tuple(_symbol(sizes, namer) for sizes in found)
        value.runs, value.symbols = named[key]


def _symbol(sizes: Sizes, namer: Namer) -> str:
    """The name of a dimension; T+6 where the same place was T+5 in an earlier call and has grown by one since."""
    if namer.fits(sizes) or len(sizes) < 3 or sizes[1] is None:
        return namer.name(sizes)
    grown = sizes[0] - sizes[1]
    shifted = (sizes[0], *(None if size is None else size + grown for size in sizes[1:]))
    found = [text for text in namer.fits(shifted) if re.fullmatch(r"\w+[+-]\d+", text)]
    return found[0] if len(found) == 1 else namer.name(sizes)
