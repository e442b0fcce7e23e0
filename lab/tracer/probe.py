"""Making a recorded call again with other sizes, without leaving a trace of it (see `isolate`).

Three runs, under `no_grad`: one token fewer, one batch row more, and other sizes of the model itself. What comes of it:
names for dimensions (`naming`, `sizes`), and shape coincidences: a transpose that was forgotten, and only worked
because T happened to equal K, fails here. Where a run fails or takes another path, other sizes are tried: a model that
wants an even T runs with twice as many tokens.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lab.tracer.frames import set_profile
from lab.tracer.inputs import MAX_PROBED, Replay, keep_inputs, resized, tensors_of
from lab.tracer.isolate import duplicate, nothing_changes
from lab.tracer.rebuild import rebuilt, shapes_in
from lab.tracer.record import Op, Recorder, Scope
from lab.tracer.sizes import INPUTS, other_sizes, sizes_of, with_sizes
from lab.tracer.source import line_at, short_file
from lab.tracer.values import Value, tensors_in

__all__ = [
    "MAX_PROBED", "Probe", "Replay", "align", "duplicate", "keep_inputs", "more_probes", "nothing_changes",
    "other_sizes", "rebuilt", "resized", "run_probes", "sizes_of", "tensors_of", "with_sizes",
]  # fmt: skip

MAX_SECONDS = 3.0  # of processor time; no further sizes, and no further reading of the inputs, are tried after so long
MAX_REBUILT = 200_000_000  # parameters of the largest model that is made anew in other sizes


@dataclass
class Probe:
    """One run with other sizes. `call` is what was recorded; `error` is what it ended with, if it did."""

    what: str  # in words: "T=15"
    letters: dict[str, int]
    call: Scope | None = None
    error: Exception | None = None
    failed_at: Any = None  # the scope or operation where it ended
    ambiguous: bool = False  # several readings of the inputs were possible
    twins: dict[int, Any] = field(default_factory=dict)  # by index of a recorded tensor, the one in its place here
    aligned: int = 0  # how many events of the recorded run happened here at the same place
    parted: Scope | Op | None = None  # where the recorded run did something else than this one
    complete: bool = False  # the whole run took the same path, if need be to the same failure
    skipped: str = ""  # why it was not made

    def note(self) -> str:
        """One line saying why this run does not tell all sizes; "" if it does."""
        if self.complete:
            return ""
        if self.skipped:
            return f"no run with {self.what}: {self.skipped}"
        if self.error is not None:
            message = str(self.error).strip().split("\n")[0][:160]
            where = f" in {_place(self.failed_at)}" if self.failed_at is not None else ""
            return f"the run with {self.what} failed{where}: {type(self.error).__name__}: {message}"
        where = f" from {_place(self.parted)} on" if self.parted is not None else ""
        return f"the run with {self.what} took another path{where}: sizes there are named without it"


def _place(item: Scope | Op) -> str:
    """`attend() model.py:210`"""
    inside = item.parent if isinstance(item, Op) or item.parent.parent is not None else item
    line = line_at(inside.code, item.lasti) if inside is item.parent else item.last_line
    return f"{inside.title()} {short_file(inside.code.co_filename)}:{line}"


# --------------------------------------------------------------------------------------------------------------------
# The runs


def run_probes(call: Scope, config: Any) -> list[Probe]:
    """The runs of one recorded call with other sizes, as far as they took the same path as the recorded one."""
    letters = call.replay.letters
    old = (sizes_of(config) if config is not None else {}) | letters
    probes = []
    for letter in INPUTS:
        if letter in letters:
            probes += _until_complete(call, old, letter, _sizes_to_try(letter, letters[letter]))
    if old.keys() - set(INPUTS):
        probes.append(_other_model(call, config, old, attempt=0))
    return probes


def more_probes(call: Scope, config: Any, probes: list[Probe], letters: set[str]) -> list[Probe]:
    """Further runs, for names that the first ones leave open. `letters`: those that come into question."""
    old = (sizes_of(config) if config is not None else {}) | call.replay.letters
    complete = [probe for probe in probes if probe.complete]
    more = []
    for letter in INPUTS:
        size = old.get(letter, 0)
        ran = {probe.letters[letter] for probe in complete if letter in probe.letters} - {size}
        if letter in letters and ran:
            free = [n for n in (size - 2, size + 2, 2 * size, size + 3) if n > 1 and n not in ran]
            more += [probe for probe in _until_complete(call, old, letter, free) if probe.complete]
    if letters - set(INPUTS) and probes[-1].complete:
        more += [probe for probe in [_other_model(call, config, old, attempt=1)] if probe.complete]
    return more


def _sizes_to_try(letter: str, size: int) -> list[int]:
    """One token fewer, one row or key more; where that does not run, sizes that keep divisors."""
    first = [size - 1, size + 1, size - 2] if letter == "T" else [size + 1]
    halves = [size // 2] if letter == "T" and size % 2 == 0 else []
    return [n for n in [*first, *halves, 2 * size] if n > 0]


def _until_complete(call: Scope, old: dict, letter: str, sizes: list[int]) -> list[Probe]:
    """The run with the first of these sizes, and, if that one did not take the same path, with the first that does."""
    first, begun = None, time.thread_time()
    for size in sizes:
        probe = _probe(call, old, old | {letter: size}, f"{letter}={size}")
        if probe.complete:
            return [probe] if first is None else [first, probe]
        first = first or probe
        if time.thread_time() - begun > MAX_SECONDS:
            break
    return [first] if first is not None else []


def _probe(call: Scope, old: dict, new: dict, what: str, module: nn.Module | None = None) -> Probe:
    best, begun = None, time.thread_time()
    for grad in [False, True] if call.replay.grad else [False]:  # code that asks for gradients fails without
        trials = resized(call.replay, old, new)
        for number, (args, kwargs) in enumerate(trials):
            probe = Probe(what, new, ambiguous=number > 0)
            run_again(probe, call.replay, module or call.replay.module, args, kwargs, grad)
            align(call, probe)
            if best is None or (probe.complete, probe.aligned) > (best.complete, best.aligned):
                best = probe
            if best.complete or time.thread_time() - begun > MAX_SECONDS:
                return best
            if grad:
                break
    return best


def run_again(probe: Probe, replay: Replay, module: nn.Module, args: list, kwargs: dict, grad: bool = False) -> None:
    """Makes the call and notes in `probe` what was recorded, and the exception it ended with."""
    recorder = None
    before = sys.getprofile()
    sys.setprofile(None)
    try:
        with nothing_changes(module), torch.set_grad_enabled(grad), contextlib.ExitStack() as stack:
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for kind, dtype in replay.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            recorder = stack.enter_context(Recorder(module))
            method = module if replay.function == "forward" else getattr(module, replay.function)
            method(*args, **kwargs)
    except Exception as error:
        probe.error = error.with_traceback(None)  # its frames hold tensors
        error.__context__ = None
        probe.failed_at = recorder.error[0] if recorder and recorder.error else None
    finally:
        set_profile(before)
    probe.call = recorder.calls[0] if recorder and recorder.calls else None


def _other_model(call: Scope, config: Any, old: dict[str, int], attempt: int) -> Probe:
    """One run of a model of other sizes: the first that can be built and takes the same path."""
    own = {name: size for name, size in old.items() if name not in INPUTS}
    relations = []
    if {"D", "H", "K"} <= own.keys() and own["D"] == own["H"] * own["K"]:
        relations.append("D=HK")
    elif {"D", "H"} <= own.keys() and own["D"] % own["H"] == 0:
        relations.append("H|D")
    if {"H", "G"} <= own.keys() and own["H"] == own["G"]:
        relations.append("H=G")
    best = None
    for count in range(len(relations) + 1):
        for tied in itertools.combinations(relations, count):
            probe = _run_other_model(call, config, old, other_sizes(own, frozenset(tied), attempt))
            if best is None or (probe.complete, probe.aligned) > (best.complete, best.aligned):
                best = probe
            if best.complete:
                return best
    return best


def _run_other_model(call: Scope, config: Any, old: dict[str, int], sizes: dict[str, int]) -> Probe:
    what = " ".join(f"{name}={size}" for name, size in sizes.items() if name in "DHGKF") or "other sizes"
    module, count = call.replay.module, sum(p.numel() for p in call.replay.module.parameters())
    if count > MAX_REBUILT:
        return Probe(what, old, skipped=f"{count:,} parameters are too many to make the model a second time")
    own = {name: old[name] for name in sizes}
    try:
        with nothing_changes(module):
            other_config = with_sizes(config, sizes)
    except Exception as error:
        return Probe(what, old, skipped=f"the config refuses them: {_first_line(error)}")
    try:
        with nothing_changes():
            other = rebuilt(module, config, other_config, (own, sizes))
    except Exception as error:
        reason = f"{type(module).__name__} could not be made anew: {_first_line(error)}"
        return Probe(what, old, skipped=reason)
    if shapes_in(module) and shapes_in(other) == shapes_in(module):
        return Probe(what, old, skipped=f"the sizes of {type(module).__name__} stand in its code")
    return _probe(call, old, old | sizes, what, other)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:160]


# --------------------------------------------------------------------------------------------------------------------
# Pairing


def align(call: Scope, probe: Probe) -> None:
    """Pairs the tensors of the recorded run with those of the other one, as far as both took the same path.

    Where they part inside one call, what comes after that call is paired again.
    """
    if probe.call is None:
        return
    _align_scopes(call, probe.call, probe)
    probe.complete = probe.parted is None and (probe.error is not None) == call.failed


def _align_scopes(mine: Scope, other: Scope, probe: Probe) -> None:
    _pair(_arguments(mine), _arguments(other), mine, probe)
    for a, b in itertools.zip_longest(mine.children, other.children):
        if a is None or b is None or not _same_place(a, b):
            probe.parted = probe.parted or a or mine
            break
        if isinstance(a, Op):
            _pair(a.inputs() + a.outputs(), b.inputs() + b.outputs(), a, probe)
        else:
            _align_scopes(a, b, probe)
    if not other.failed:
        _pair(list(tensors_in(mine.output)), list(tensors_in(other.output)), mine, probe)


def _same_place(a: Scope | Op, b: Scope | Op) -> bool:
    if type(a) is not type(b) or a.lasti != b.lasti or a.parent.code is not b.parent.code:
        return False
    return a.name == b.name if isinstance(a, Op) else a.code is b.code


def _arguments(scope: Scope) -> list[Value]:
    return [value for argument in scope.arguments for value in tensors_in(argument.info)]


def _pair(mine: list[Value], other: list[Value], item: Scope | Op, probe: Probe) -> None:
    same = len(mine) == len(other) and all(len(a.shape or ()) == len(b.shape or ()) for a, b in zip(mine, other))
    if not same:
        probe.parted = probe.parted or item
        return
    for a, b in zip(mine, other):
        probe.twins.setdefault(a.index, b)
    probe.aligned += 1
