"""Hints that were tried: small changes of the code are made one after the other until the failing call runs.

Where a call failed, the lines that had a part in it are gathered: the failing line, those that made its operands, those
that gave sizes their values, and the constructor's lines that made the layers. To each of them the usual slips are
undone: a dimension number is moved, a size replaced by another, two arguments exchanged, a transpose put in or taken
out, a mask sliced, `keepdim=True` added (`edits.py`). A change counts only if the call then runs, also with one token
fewer, with one batch row more and in a model of other sizes too. Among those that do, plausibility decides: rows must
not influence one another, later tokens not earlier ones, the output should have the input's shape, and the smaller and
nearer change wins.

Nothing of this touches the model: it works on copies of its state (`probe.nothing_changes`), a function's code is
exchanged only while a trial runs, and printed output is dropped.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import itertools
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch
from torch import nn

from lab.tracer import probe as probing
from lab.tracer.edits import Edit, Scenery, edits_of
from lab.tracer.failure import Failure, climb, is_foreign
from lab.tracer.record import Op, Scope
from lab.tracer.source import function_node, read, short_file, statement_at
from lab.tracer.values import Value

SECONDS = 2.0  # of processor time to search for
MAX_SITES = 24
READINGS = 4  # of ambiguous inputs that are tried in a model of other sizes
IMPLAUSIBLE = 2.0  # a change whose result is as odd as this is not shown


@dataclass
class Fix:
    """A change of the source that was tried and found to mend the call."""

    file: str
    edit: Edit
    tried: str  # under which sizes it ran

    @property
    def line(self) -> int:
        return self.edit.line

    def apply(self, source: str) -> str:
        """The mended text of the file."""
        return "".join(_edited(source.splitlines(keepends=True), self.edit))

    def text(self) -> str:
        """The change in words: the line, what stands there, what should, the new line."""
        old, new = self.edit.shown
        lines = _edited(read(self.file).lines, self.edit)
        fixed = " ".join(lines[self.edit.line - 1].split())
        where = f"{short_file(self.file)}:{self.edit.line}"
        return f"{self.edit.why}: `{old}` → `{new}` in {where}\n      {fixed}\n    tried: {self.tried}"


def _edited(lines: list[str], edit: Edit) -> list[str]:
    first, last = edit.line - 1, edit.end_line - 1
    head = lines[first].encode()[: edit.column].decode()
    tail = lines[last].encode()[edit.end_column :].decode()
    return [*lines[:first], head + edit.text + tail, *lines[last + 1 :]]


# --------------------------------------------------------------------------------------------------------------------
# Which lines had a part in it


@dataclass
class Site:
    """A statement that may be at fault."""

    code: CodeType
    statement: ast.stmt
    distance: int  # steps back from the failure
    owner: type | None = None  # for a constructor's line, the class

    @property
    def place(self) -> tuple[str, int]:
        return self.code.co_filename, self.statement.lineno


class _Sites:
    """Gathers sites by following values, names and layers backwards from the failure."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.found: dict[tuple, Site] = {}

    def add(self, code: CodeType, statement: ast.stmt | None, distance: int, module: nn.Module | None = None) -> None:
        if statement is None or is_foreign(code.co_filename) or len(self.found) >= MAX_SITES or distance > 5:
            return
        if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.Raise | ast.Assert):
            return  # a check is never the thing to change
        key = (code.co_filename, statement.lineno, statement.col_offset)
        if key in self.found:
            return
        constructor = code.co_name == "__init__"
        self.found[key] = Site(code, statement, distance, type(module) if constructor and module is not None else None)
        self._names(code, statement, distance, module)

    def _names(self, code: CodeType, statement: ast.stmt, distance: int, module: nn.Module | None) -> None:
        """The statements that gave a value to what this one reads: local names, and attributes of self."""
        node = function_node(code)
        for name in ast.walk(statement):
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load) and node is not None:
                definition = _last_assignment(node, name.id, statement)
                if definition is not None:
                    self.add(code, definition, distance + 1, module)
            is_own = isinstance(name, ast.Attribute) and isinstance(name.value, ast.Name) and name.value.id == "self"
            if is_own and isinstance(name.ctx, ast.Load) and module is not None:
                self.attribute(module, name.attr, distance + 1)

    def attribute(self, module: nn.Module, name: str, distance: int) -> None:
        """The constructor's statement that set an attribute: `self.name = ...` or `register_buffer("name", ...)`."""
        for cls in type(module).__mro__:
            constructor = vars(cls).get("__init__")
            code = getattr(constructor, "__code__", None)
            if code is None or is_foreign(code.co_filename):
                continue
            node = function_node(code)
            for statement in ast.walk(node) if node is not None else ():
                if isinstance(statement, ast.stmt) and _sets(statement, name):
                    self.add(code, statement, distance, module)

    def value(self, value: Value, distance: int) -> None:
        """The statement that made a tensor, and what had a part in that."""
        if distance > 4:
            return
        if value.maker is None:
            if value.weight and "." in f".{value.origin}":
                path, _, name = value.origin.rpartition(".")
                self.attribute(self.model.get_submodule(path), name, distance)
                self._layer(path, distance)
            return
        self.item(climb(value.maker), distance)

    def item(self, item: Op | Scope, distance: int) -> None:
        code = item.parent.code
        statement = statement_at(code, item.lasti)
        known = (code.co_filename, statement.lineno, statement.col_offset) in self.found if statement else True
        module = self.module_of(item.parent)
        self.add(code, statement, distance, module)
        if known:
            return
        if isinstance(item, Scope):  # a layer of PyTorch's: where it was made, and what it was given
            self._layer(item.path, distance + 1)
        inputs = (
            item.inputs() if isinstance(item, Op) else [a.info for a in item.arguments if isinstance(a.info, Value)]
        )
        for value in inputs:
            self.value(value, distance + 1)
        self.callers(item.parent, distance + 1)

    def callers(self, scope: Scope, distance: int) -> None:
        """Where a function was called from: its arguments may be wrong."""
        if scope.parent is not None and scope.parent.parent is not None and scope.lasti >= 0:
            code = scope.parent.code
            self.add(code, statement_at(code, scope.lasti), distance, self.module_of(scope.parent))
            self.callers(scope.parent, distance + 1)

    def _layer(self, path: str, distance: int) -> None:
        parent, _, name = path.rpartition(".")
        with contextlib.suppress(AttributeError):
            owner = self.model.get_submodule(parent)
            if not name.isdigit():
                self.attribute(owner, name, distance)
            elif parent:
                self._layer(parent, distance)

    def module_of(self, scope: Scope) -> nn.Module | None:
        """The module whose method a scope is; None for a plain function."""
        if not scope.owner:
            return None
        with contextlib.suppress(AttributeError):
            return self.model.get_submodule(scope.path)
        return None


def _last_assignment(function: ast.AST, name: str, before: ast.stmt) -> ast.stmt | None:
    """The last statement above `before` that assigns to a local name."""
    best = None
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.For) or node.lineno >= before.lineno:
            continue
        target = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {n.id for t in target for n in ast.walk(t) if isinstance(n, ast.Name)}
        if name in names and (best is None or node.lineno > best.lineno):
            best = node
    return None if isinstance(best, ast.For) else best


def _sets(statement: ast.stmt, name: str) -> bool:
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        parts = [part for t in targets for part in (t.elts if isinstance(t, ast.Tuple) else [t])]
        return any(isinstance(p, ast.Attribute) and p.attr == name and ast.unparse(p.value) == "self" for p in parts)
    call = statement.value if isinstance(statement, ast.Expr) else None
    registers = (
        isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr.startswith("register_")
    )
    return bool(registers and call.args and isinstance(call.args[0], ast.Constant) and call.args[0].value == name)


def constructor_line(model: nn.Module, weight: Value) -> tuple[str, int] | None:
    """Where a parameter or buffer was made: the constructor's line for it, or for the layer it belongs to."""
    sites = _Sites(model)
    sites.value(weight, 4)
    return next((site.place for site in sites.found.values()), None)


def gather(trace: Any, failure: Failure) -> list[Site]:
    """The statements that may be at fault, nearest first."""
    sites = _Sites(trace.model)
    module = sites.module_of(failure.scope)
    sites.add(failure.frame.f_code, statement_at(failure.frame.f_code, failure.lasti), 0, module)
    if failure.op is not None:
        if isinstance(failure.item, Scope):
            sites._layer(failure.item.path, 1)
        for value in failure.op.inputs():
            sites.value(value, 1)
    else:
        for item in reversed(failure.scope.children):
            sites.item(climb(item), 1)
    sites.callers(failure.scope, 1)
    return sorted(sites.found.values(), key=lambda site: site.distance)


# --------------------------------------------------------------------------------------------------------------------
# Trying


@dataclass
class Trials:
    """The failing call under several sizes, to be made with changed code."""

    trace: Any
    replay: probing.Replay
    runs: list[tuple[str, dict, tuple]] = field(
        default_factory=list
    )  # (what, sizes, inputs); the first is the call itself
    other: tuple | None = None  # (config, sizes) of a model of other sizes

    def __post_init__(self):
        config = self.trace.names
        sizes = probing.sizes_of(config) if config is not None else {}
        old = sizes | self.replay.letters
        self.old = old
        self.runs.append(("", old, (self.replay.args, self.replay.kwargs)))
        for letter, step in (("T", -1), ("B", 1)):
            if letter in self.replay.letters and old[letter] + step > 0:
                new = old | {letter: old[letter] + step}
                inputs = next(probing.resized(self.replay, old, new))
                self.runs.append((f"{letter}={new[letter]}", new, inputs))
        if config is not None and not isinstance(config, dict):
            with contextlib.suppress(Exception):  # a config that can't be changed: then without that run
                other = probing.other_sizes(sizes, frozenset())
                self.other = (probing.with_sizes(config, other), old | other)

    def call(self, module: nn.Module, inputs: tuple) -> Any:
        memo: dict = {}
        args, kwargs = probing.duplicate(inputs[0], memo), probing.duplicate(inputs[1], memo)
        method = module if self.replay.function == "forward" else getattr(module, self.replay.function)
        return method(*args, **kwargs)

    def outcome(self, rebuild: bool) -> Outcome | None:
        """What the call gives with the code as it stands now; None if it fails under any of the sizes."""
        module, config = self.replay.module, self.trace.names
        own = {k: v for k, v in self.old.items() if k not in "BTS"}
        try:
            if rebuild:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    module = probing.rebuilt(module, config, config, (own, own))
            outputs = [self.call(module, inputs) for _, _, inputs in self.runs]
        except Exception:  # this change does not mend it
            return None
        found = Outcome([_flat(output) for output in outputs], [what for what, _, _ in self.runs if what])
        if self.other is not None:
            self._try_other(found, config, own)
        return found

    def _try_other(self, found: Outcome, config: Any, own: dict) -> None:
        other_config, sizes = self.other
        try:
            other = probing.rebuilt(self.replay.module, config, other_config, (own, sizes))
        except Exception:  # a model that can't be built in other sizes: there is no such run
            return
        shapes = [[p.shape for p in module.parameters()] for module in (self.replay.module, other)]
        if shapes[0] == shapes[1]:  # the config does not set this model's sizes
            return
        for inputs in itertools.islice(probing.resized(self.replay, self.old, sizes), READINGS):
            try:
                found.elsewhere = _flat(self.call(other, inputs))
            except Exception:  # not with the inputs read in this way
                continue
            found.what.append("in a model of other sizes")
            return
        found.fails_elsewhere = True


@dataclass
class Outcome:
    """What a mended call gave, run by run."""

    outputs: list[list[torch.Tensor]]
    what: list[str]
    elsewhere: list[torch.Tensor] | None = None
    fails_elsewhere: bool = False

    def penalty(self, trials: Trials) -> float:
        """How implausible the result is."""
        first = self.outputs[0]
        if not first:
            return 3.0
        total = IMPLAUSIBLE * self.fails_elsewhere
        total += 1.0 * any(o.is_floating_point() and not o.isfinite().all() for o in first if o.numel())
        x = next(probing.tensors_of([trials.replay.args, trials.replay.kwargs]), None)
        letters = trials.replay.letters
        if first[0].ndim >= 2 and "B" in letters:
            total += 2.0 * (first[0].shape[0] not in (letters["B"], letters["B"] * letters.get("T", 1)))
        if x is not None and x.is_floating_point() and x.ndim >= 3:
            total += 0.8 * (first[0].shape != x.shape)
            if self.elsewhere and first[0].shape == x.shape:
                total += 0.8 * (self.elsewhere[0].shape[-1] != trials.other[1].get("D", self.elsewhere[0].shape[-1]))
        runs = {what[0]: outputs for (what, _, _), outputs in zip(trials.runs, self.outputs, strict=True) if what}
        if "B" in runs:
            total += 1.5 * (not _agree(first[0], runs["B"][0], dim=0))
        if "T" in runs and first[0].ndim >= 2 and first[0].shape[1] == letters["T"]:
            total += 0.6 * (not _agree(first[0], runs["T"][0], dim=1))
        return total


def _flat(output: Any) -> list[torch.Tensor]:
    return list(probing.tensors_of([output]))


def _agree(a: torch.Tensor, b: torch.Tensor, dim: int) -> bool:
    """Whether two outputs agree where both have something: the first rows, the first tokens."""
    if a.ndim != b.ndim or a.ndim <= dim:
        return a.ndim == b.ndim == 0
    length = min(a.shape[dim], b.shape[dim])
    a, b = a.narrow(dim, 0, length), b.narrow(dim, 0, length)
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-4, rtol=1e-3, equal_nan=True)


class Exchange:
    """Runs functions with an edited source."""

    def __init__(self):
        self._functions: dict[CodeType, list] = {}

    @contextlib.contextmanager
    def __call__(self, code: CodeType, edit: Edit) -> Iterator[bool]:
        """Within the block the functions of a code object are changed. Yields False if the edit can't be compiled."""
        if code not in self._functions:
            found = gc.get_referrers(code)
            self._functions[code] = [f for f in found if isinstance(f, types.FunctionType) and f.__code__ is code]
        functions, new = self._functions[code], _compile(code, edit)
        if new is None or not functions or new.co_freevars != code.co_freevars:
            yield False
            return
        try:
            for function in functions:
                function.__code__ = new
            yield True
        finally:
            for function in functions:
                function.__code__ = code


def _compile(code: CodeType, edit: Edit) -> CodeType | None:
    """The code of one function after an edit, ready to run."""
    node = function_node(code)
    if node is None:
        return None
    lines = _edited(read(code.co_filename).lines, edit)
    body = lines[node.lineno - 1 : node.end_lineno - (edit.end_line - edit.line)]
    # Indented code goes into a class of its own, which also gives `super()` the cell it looks for.
    head = "class _:\n" if node.col_offset else ""
    try:
        outer = compile(head + "".join(body), code.co_filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    found = [c for c in _codes(outer) if c.co_name == code.co_name]
    return found[0] if found else None


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


# --------------------------------------------------------------------------------------------------------------------
# The search


def mend(trace: Any, failure: Failure, error: Exception) -> tuple[Fix | None, list[tuple[str, int]]]:
    """The most plausible small change that mends a failed call, and the places that come into question."""
    call = trace.calls[-1]
    sites = gather(trace, failure)
    places = [site.place for site in sites if site.place[1] != failure.line]
    if not trace.probe or call.replay.module is None or not _may_be_mended(failure, error):
        return None, places
    before = sys.getprofile()
    sys.setprofile(None)
    try:
        with probing.nothing_changes(call.replay.module, call.replay.module):
            return _search(Trials(trace, call.replay), Scenery(trace, call), sites, error), places
    finally:
        sys.setprofile(before)


def _may_be_mended(failure: Failure, error: Exception) -> bool:
    """Errors of shapes and types. What someone raised on purpose, wrong ids, devices and a full memory are not."""
    statement = statement_at(failure.frame.f_code, failure.lasti)
    if isinstance(statement, ast.Raise) or isinstance(error, torch.OutOfMemoryError):
        return False
    if failure.op is not None and failure.op.name == "embedding" and isinstance(error, IndexError):
        return False
    if failure.op is not None and len({value.device for value in failure.op.inputs()}) > 1:
        return False
    return isinstance(error, RuntimeError | ValueError | IndexError | TypeError | AssertionError)


def _search(trials: Trials, scenery: Scenery, sites: list[Site], error: Exception) -> Fix | None:
    deadline = time.thread_time() + SECONDS
    changed = Exchange()
    candidates = []
    if any(site.owner is not None for site in sites) and trials.outcome(rebuild=True) is not None:
        sites = [site for site in sites if site.owner is None]  # newly made it runs: the constructor is not at fault
    for site in sites:
        for edit in edits_of(site.code, site.statement, scenery):
            candidates.append(
                (edit.cost + 0.12 * site.distance + 0.1 * (site.owner is not None), len(candidates), site, edit)
            )
    candidates.sort(key=lambda candidate: candidate[:2])
    best: tuple[float, Fix] | None = None
    for cost, _, site, edit in candidates:
        if time.thread_time() > deadline or (best is not None and cost >= best[0]):
            break
        with changed(site.code, edit) as done:
            outcome = trials.outcome(rebuild=site.owner is not None) if done else None
        if outcome is None:
            continue
        penalty = outcome.penalty(trials)
        if penalty < IMPLAUSIBLE and (best is None or cost + penalty < best[0]):
            best = cost + penalty, Fix(site.code.co_filename, edit, _tried(outcome))
    return None if best is None else best[1]


def _tried(outcome: Outcome) -> str:
    return "the call then runs" + (f", also with {', '.join(outcome.what)}" if outcome.what else "")
