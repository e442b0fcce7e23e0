"""Making a recorded call again with other sizes, without leaving a trace of it (see `isolate`).

Three runs, under `no_grad`: one token fewer, one batch row more, and other sizes of the model itself. What comes of it:
names for dimensions (`naming`, `sizes`), and shape coincidences: a transpose that was forgotten, and only worked
because T happened to equal K, fails here. Where a run fails or takes another path, other sizes are tried: a model that
wants an even T runs with twice as many tokens.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lab.tracer.frames import set_profile
from lab.tracer.isolate import duplicate, nothing_changes, slots_of
from lab.tracer.record import Op, Recorder, Scope
from lab.tracer.sizes import INPUTS, LETTERS, Namer, other_sizes, sizes_of, with_sizes
from lab.tracer.source import line_at, short_file
from lab.tracer.values import Value, tensors_in

MAX_PROBED = 4  # outermost calls that are made again with other sizes; later ones reuse what was learned
MAX_TRIALS = 12, 40  # readings of ambiguous inputs tried for one probe: sizes read alike, and each by itself
MAX_SECONDS = 3.0  # no further reading is tried after so long
MAX_REBUILT = 200_000_000  # parameters of the largest model that is made anew in other sizes


@dataclass
class Replay:
    """What is needed to make an outermost call again: copies of its inputs, as they were before the call."""

    module: nn.Module | None
    function: str
    args: list
    kwargs: dict
    letters: dict[str, int]  # B, T, S: the sizes that the inputs themselves show
    autocast: list[tuple[str, torch.dtype]] = field(default_factory=list)  # device types for which it was on
    grad: bool = False  # whether gradients were recorded
    known: list[tuple[torch.Tensor, Value]] = field(default_factory=list)  # of the copies, those met in earlier calls


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
    complete: bool = False  # the whole run took the same path
    skipped: str = ""  # why it was not made

    def note(self) -> str:
        """One line saying why this run does not tell all sizes; "" if it does."""
        if self.skipped:
            return f"no run with {self.what}: {self.skipped}"
        if self.error is not None:
            message = str(self.error).strip().split("\n")[0][:160]
            where = f" in {_place(self.failed_at)}" if self.failed_at is not None else ""
            return f"the run with {self.what} failed{where}: {type(self.error).__name__}: {message}"
        if not self.complete:
            where = f" from {_place(self.parted)} on" if self.parted is not None else ""
            return f"the run with {self.what} took another path{where}: sizes there are named without it"
        return ""


def _place(item: Scope | Op) -> str:
    """`attend() model.py:210`"""
    inside = item.parent if isinstance(item, Op) or item.parent.parent is not None else item
    line = line_at(inside.code, item.lasti) if inside is item.parent else item.last_line
    return f"{inside.title()} {short_file(inside.code.co_filename)}:{line}"


# --------------------------------------------------------------------------------------------------------------------
# Keeping the inputs of a call


def keep_inputs(letters: dict[str, int]) -> Callable[[tuple, Callable], Replay]:
    """A function that copies the inputs of calls. `letters`: the sizes known from the config, such as D.

    It is called with (module, function, args, kwargs) and a function that gives the Value of a tensor met before.

    Only the first MAX_PROBED calls and the last one keep their copies: each may hold a large decode state.
    """
    kept: list[Replay] = []

    def keep(call: tuple, known: Callable[[torch.Tensor], Value | None]) -> Replay:
        module, function, args, kwargs = call
        if len(kept) > MAX_PROBED:
            kept[-1].args, kept[-1].kwargs, kept[-1].known, kept[-1].module = [], {}, [], None
        found = batch_and_length([*args, *kwargs.values()], letters)
        memo: dict[int, Any] = {}
        args, kwargs = duplicate(args, memo), duplicate(kwargs, memo)
        replay = Replay(module, function, args, kwargs, found, _autocast(), torch.is_grad_enabled())
        copies = [(made, known(original)) for original, made in memo.values() if isinstance(original, torch.Tensor)]
        replay.known = [(made, value) for made, value in copies if value is not None]
        kept.append(replay)
        return replay

    return keep


def _autocast() -> list[tuple[str, torch.dtype]]:
    kinds = [kind for kind in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(kind)]
    return [(kind, torch.get_autocast_dtype(kind)) for kind in kinds]


def batch_and_length(inputs: list, letters: dict[str, int]) -> dict[str, int]:
    """B and T, read off the first tensor that shows them: tokens (B, T), activations (B, T, ...), heads (B, H, T, K).

    S is the second dimension of another such tensor, where it differs from T: the keys to look at. What the names
    themselves say of B, T and S comes first.
    """
    tensors = [t for t in inputs if isinstance(t, torch.Tensor)] or list(tensors_of(inputs))
    tensors = [t for t in tensors if not t.is_nested]
    heads = {letters[name] for name in "HG" if name in letters}
    found: dict[str, int] = {}
    for t in tensors:
        whole = not t.is_floating_point() and not t.is_complex() and t.dtype != torch.bool
        if not found and (t.ndim == 3 or (t.ndim == 2 and whole)):
            found = {"B": t.shape[0], "T": t.shape[1]}
        elif not found and t.ndim == 4 and heads & {t.shape[1], t.shape[2]}:
            found = {"B": t.shape[0], "T": t.shape[2 if t.shape[1] in heads else 1]}
        elif not found and t.ndim == 1 and whole:
            found = {"T": t.shape[0]}
        elif found and _is_other_row(t, found, letters):
            found.setdefault("S", t.shape[1])
    if not found and tensors and tensors[0].ndim:
        found = {"B": tensors[0].shape[0]}
    return found | {name: letters[name] for name in INPUTS if name in letters}


def _is_other_row(t: torch.Tensor, found: dict[str, int], letters: dict[str, int]) -> bool:
    """Whether it is (B, S, ...) with an S of its own."""
    known = letters.values()
    alike = t.ndim == 3 and t.shape[0] == found.get("B") and t.shape[2] in known
    return alike and t.shape[1] != found.get("T") and t.shape[1] not in known


def tensors_of(value: Any, depth: int = 0, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """The tensors in a value, each once, in lists, dicts and objects too; not those of modules."""
    seen = set() if seen is None else seen
    if isinstance(value, (nn.Module, nn.Parameter, type, types.FunctionType, types.ModuleType)):
        return
    if id(value) in seen or depth > 5:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
        return
    if not isinstance(value, (tuple, list, dict)):
        value = {**getattr(value, "__dict__", {}), **slots_of(value)}
    for item in value.values() if isinstance(value, dict) else value:
        yield from tensors_of(item, depth + 1, seen)


# --------------------------------------------------------------------------------------------------------------------
# Other inputs

Shape = tuple[int, ...]


def resized(replay: Replay, old: dict[str, int], new: dict[str, int]) -> Iterator[tuple[list, dict]]:
    """The inputs of a call with other sizes, in each way they can be read, likeliest first.

    At first only sizes that the first tensor shows are changed, and those that an earlier call has named: that a mask
    is 8 wide where there are 8 heads proves nothing. If that fails, a dimension is taken for the letters whose size it
    has. Where that is ambiguous (16 may be T or K), equal sizes are read alike and the readings are tried in turn; then
    each dimension of each shape is read by itself. Numbers among the arguments that equal a length may be one.
    """
    inputs = [replay.args, replay.kwargs]
    tensors = [t for t in tensors_of(inputs) if t.layout == torch.strided and not t.is_nested]
    shapes = list(dict.fromkeys(tuple(t.shape) for t in tensors))
    readings = {size: _readings(size, old, new) for size in sorted({s for shape in shapes for s in shape if s})}
    first = _primary_shape(tuple(tensors[0].shape), old, new) if tensors else None
    lengths = {old[name]: new[name] for name in ("T", "S") if old.get(name, 0) > 2 and new[name] != old[name]}
    seen = set()
    own = {size: options for size, options in readings.items() if tensors and size in tensors[0].shape}
    named = {tuple(t.shape): _target(value, old, new) for t, value in replay.known if value.symbols is not None}
    ways = _alike(shapes, own), _alike(shapes, readings), _one_by_one(shapes, readings)
    for targets in itertools.chain((targets | named for targets in _alike(shapes, own) if named), *ways):
        key = tuple(targets.values())
        if key in seen:
            continue
        seen.add(key)
        yield _resize(inputs, tensors, targets, first, {})
        if len(seen) == 1 and _has_number(inputs, lengths):
            yield _resize(inputs, tensors, targets, first, lengths)


def _alike(shapes: list[Shape], readings: dict[int, list[int]]) -> Iterator[dict[Shape, Shape]]:
    for choice in itertools.islice(itertools.product(*readings.values()), MAX_TRIALS[0]):
        becomes = dict(zip(readings, choice))
        yield {shape: tuple(becomes.get(size, size) for size in shape) for shape in shapes}


def _target(value: Value, old: dict[str, int], new: dict[str, int]) -> Shape:
    """What a shape becomes whose dimensions have names already."""
    target = list(value.shape)
    for dim, name in enumerate(value.symbols):
        with contextlib.suppress(ValueError):  # an intricate name: the size stays
            if _evaluate(name, old) == value.shape[dim]:
                target[dim] = _evaluate(name, new)
    return tuple(target)


def _one_by_one(shapes: list[Shape], readings: dict[int, list[int]]) -> Iterator[dict[Shape, Shape]]:
    options = []
    for shape in shapes:
        found = set(itertools.islice(itertools.product(*(readings.get(size, [size]) for size in shape)), 200))
        options.append(sorted(found, key=lambda target: _unlikeliness(shape, target, readings))[:12])
    choices = list(itertools.islice(itertools.product(*map(enumerate, options)), 5000))
    choices.sort(key=lambda choice: sum(rank for rank, _ in choice))
    for choice in choices[: MAX_TRIALS[1]]:
        yield dict(zip(shapes, (target for _, target in choice)))


def _unlikeliness(shape: Shape, target: Shape, readings: dict[int, list[int]]) -> tuple:
    """Of equal sizes in one shape most likely one alone changes; the others go by the order of their readings."""
    repeated = {size for size in shape if shape.count(size) > 1}
    changed = [i for i, (a, b) in enumerate(zip(shape, target)) if a != b and a in repeated]
    ranks = sum(readings[a].index(b) for a, b in zip(shape, target) if a in readings and a not in repeated)
    return abs(len(changed) - 1) if repeated else 0, ranks, changed


def _readings(size: int, old: dict[str, int], new: dict[str, int]) -> list[int]:
    """What a dimension of this size may become, likeliest first."""
    names = ("T", "S", "B", *sorted((name for name in old if name not in INPUTS), key=lambda name: name == "V"))
    found = [new[name] for name in names if old.get(name) == size]
    if size == 1:  # more often made for broadcasting than a batch of one
        return list(dict.fromkeys([1, *found]))
    found += [_evaluate(text, new) for text in Namer([old]).guesses(size)]
    found += [new["T"] + n for n in (1, -1) if old.get("T", -9) + n == size]  # with BOS, or a shifted target
    return list(dict.fromkeys(value for value in [*found, size] if value))


def _evaluate(formula: str, sizes: dict[str, int]) -> int:
    """The value of one of the formulas that one run alone can give: X, X·Y, X/2, 2·X, or a number."""
    product = 1
    numerator, _, denominator = formula.partition("/")
    for factor in numerator.split("·"):
        product *= sizes[factor] if factor in sizes else int(factor)
    return product // int(denominator or 1)


def _primary_shape(shape: Shape, old: dict, new: dict) -> dict[int, int] | None:
    """The first input's leading dimensions are B and T by their place, whatever their size: {dimension: new size}."""
    leading = [name for name in ("B", "T") if name in old]
    if len(leading) <= len(shape) and all(shape[i] == old[name] for i, name in enumerate(leading)):
        return {i: new[name] for i, name in enumerate(leading)}
    return None


def _resize(inputs: list, tensors: list, targets: dict[Shape, Shape], first: dict | None, numbers: dict) -> Any:
    memo: dict[int, Any] = {}
    made = duplicate(inputs, memo)
    for position, original in enumerate(tensors):
        twin, target = memo[id(original)][1], list(targets[tuple(original.shape)])
        for dim, size in (first or {}).items() if position == 0 else ():
            target[dim] = size
        if target != list(original.shape):
            twin.data = _stretch(twin.detach(), target)
    made[0] = [numbers.get(arg, arg) if type(arg) is int else arg for arg in made[0]]
    made[1] = {name: numbers.get(arg, arg) if type(arg) is int else arg for name, arg in made[1].items()}
    return made


def _has_number(inputs: list, numbers: dict[int, int]) -> bool:
    return any(type(arg) is int and arg in numbers for arg in [*inputs[0], *inputs[1].values()])


def _stretch(tensor: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """The tensor cut, or repeated from its beginning, to another shape."""
    for dim, size in enumerate(shape):
        if tensor.shape[dim] == 0:
            return tensor.new_zeros(shape)
        if tensor.shape[dim] != size:
            index = torch.arange(size, device=tensor.device) % tensor.shape[dim]
            tensor = tensor.index_select(dim, index)
    return tensor.clone()


# --------------------------------------------------------------------------------------------------------------------
# Other models


def rebuilt(module: nn.Module, old_config: Any, new_config: Any, sizes: tuple[dict, dict]) -> nn.Module:
    """The same kind of module made anew from another config. Raises ValueError where it can't be told how.

    A part that was put in place of another after construction is made anew by itself.
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile wrapped
    new = _construct(module, old_config, new_config, sizes)
    _adapt(module, new, old_config, new_config, sizes)
    new.train(module.training)
    return new


def _adapt(module: nn.Module, twin: nn.Module, old_config: Any, new_config: Any, sizes: tuple) -> None:
    """Gives a new module what the old one was given after construction: switches, attributes, other parts."""
    for name, value in vars(module).items():
        is_new = name not in vars(twin) and not isinstance(value, (torch.Tensor, types.FunctionType))
        if is_new or (type(value) in (bool, str) and name != "training"):
            vars(twin)[name] = duplicate(value, {})
    for name, child in module.named_children():
        child = getattr(child, "_orig_mod", child)
        other = getattr(twin, name, None)
        if type(other) is not type(child):
            setattr(twin, name, rebuilt(child, old_config, new_config, sizes))
        else:
            _adapt(child, other, old_config, new_config, sizes)


def _construct(module: nn.Module, old_config: Any, new_config: Any, sizes: tuple[dict, dict]) -> nn.Module:
    """Calls the class with what its constructor asks for: the config, or values kept under the parameter's name.

    Sizes that were not kept are found by trial: with them the parameters must come out in the shapes they have.
    """
    cls = type(module)
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        children = [rebuilt(child, old_config, new_config, sizes) for child in module]
        return cls(*children) if isinstance(module, nn.Sequential) else cls(children)
    given = _arguments_for(module, old_config, new_config, sizes)
    known = {name: value for name, value in given.items() if value is not _UNKNOWN}
    if len(known) < len(given):
        parameters = inspect.signature(cls.__init__).parameters
        missing = [n for n in given if n not in known and _may_be_size(parameters[n])]
        before = _arguments_for(module, old_config, old_config, (sizes[0], sizes[0]))
        known |= _guessed(module, {name: before[name] for name in known}, missing, sizes)
    made = cls(**known)
    parameter = next(module.parameters(), None)
    return made if parameter is None else made.to(parameter.device, parameter.dtype)


_UNKNOWN = object()


def _arguments_for(module: nn.Module, old_config: Any, new_config: Any, sizes: tuple[dict, dict]) -> dict[str, Any]:
    """What the constructor is to be called with; _UNKNOWN for what was not kept on the module."""
    given = {}
    for name, parameter in list(inspect.signature(type(module).__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(module, name, inspect.Parameter.empty)
        value = value.p if isinstance(value, nn.Dropout) else value
        if _is_config(name, parameter, value, old_config):
            given[name] = new_config
        elif isinstance(value, nn.Module) and parameter.default in (None, inspect.Parameter.empty):
            given[name] = rebuilt(value, old_config, new_config, sizes)
        elif isinstance(parameter.default, bool) and (value is None or isinstance(value, torch.Tensor)):
            given[name] = value is not None  # bias=True is kept as the bias itself
        elif isinstance(value, (int, str, float, tuple)) or value is None:
            given[name] = _other_value(value, sizes)
        else:
            given[name] = _UNKNOWN
    return given


def _guessed(module: nn.Module, known: dict[str, Any], missing: list[str], sizes: tuple[dict, dict]) -> dict[str, int]:
    """Sizes for the missing parameters. Raises ValueError where none give the shapes that the module's tensors have.

    missing: those without a default that were not kept, and those with a number as their default.
    """
    cls, (old, new) = type(module), sizes
    own = {name: size for name, size in old.items() if name not in INPUTS}
    fits: dict[int, list[tuple[str, ...]]] = {}  # by how many of the letters the parameters' names don't speak for
    for choice in itertools.islice(itertools.product(*(_candidates(cls, name, own) for name in missing)), 200):
        try:
            made = cls(**known, **{name: own[letter] for name, letter in zip(missing, choice) if letter})
        except Exception:  # sizes that it refuses: not these
            continue
        if _shapes(made) == _shapes(module):
            strange = sum(bool(letter) and name not in LETTERS.get(letter, ()) for name, letter in zip(missing, choice))
            fits.setdefault(strange, []).append(choice)
    best = fits[min(fits)] if fits else []
    if len(best) == 1 and (_shapes(module) or 0 in fits):
        return {name: new[letter] for name, letter in zip(missing, best[0]) if letter}
    raise ValueError(f"it is not known what {cls.__name__}({', '.join(missing) or '…'}) was made with")


def _candidates(cls: type, name: str, own: dict[str, int]) -> list[str]:
    """Letters whose size a parameter may have been given; "" stands for its default."""
    has_default = inspect.signature(cls.__init__).parameters[name].default is not inspect.Parameter.empty
    return [""] * has_default + sorted(own, key=lambda letter: name not in LETTERS.get(letter, ()))


def _may_be_size(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty or type(parameter.default) is int


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in [*module.named_parameters(), *module.named_buffers()]}


def _is_config(name: str, parameter: inspect.Parameter, value: Any, config: Any) -> bool:
    if value is config:
        return True
    named = name in ("cfg", "config", "conf", "args", "hparams", "c")
    kind = type(config).__name__
    untyped = parameter.annotation is inspect.Parameter.empty and (value is inspect.Parameter.empty)
    return named and (untyped or parameter.annotation in (type(config), kind) or type(value) is type(config))


def _other_value(value: Any, sizes: tuple[dict, dict]) -> Any:
    if isinstance(value, tuple):
        return tuple(_other_value(item, sizes) for item in value)
    return _other_size(value, *sizes) if isinstance(value, int) and not isinstance(value, bool) else value


def _other_size(value: int, old: dict[str, int], new: dict[str, int]) -> int:
    """What a size becomes that is kept as a number: that of the one letter, or of the one likely product, it equals."""
    own = {name: size for name, size in old.items() if name not in INPUTS}
    matches = {new[name] for name in own if own[name] == value}
    if not matches:
        matches = {_evaluate(text, new) for text in Namer([own]).fits((value,))}
    return matches.pop() if len(matches) == 1 else value


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
    if config is not None and call.replay.module is not None:
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
    if letters - set(INPUTS) and probes[-1].complete and config is not None and call.replay.module is not None:
        more += [probe for probe in [_other_model(call, config, old, attempt=1)] if probe.complete]
    return more


def _sizes_to_try(letter: str, size: int) -> list[int]:
    """One token fewer, one row or key more; where that does not run, sizes that keep divisors."""
    first = [size - 1, size + 1, size - 2] if letter == "T" else [size + 1]
    halves = [size // 2] if letter == "T" and size % 2 == 0 else []
    return [n for n in [*first, *halves, 2 * size] if n > 0]


def _until_complete(call: Scope, old: dict, letter: str, sizes: list[int]) -> list[Probe]:
    """The run with the first of these sizes, and, if that one did not take the same path, with the first that does."""
    first = None
    for size in sizes:
        probe = _probe(call, old, old | {letter: size}, f"{letter}={size}")
        if probe.complete:
            return [probe] if first is None else [first, probe]
        first = first or probe
    return [first] if first is not None else []


def _probe(call: Scope, old: dict, new: dict, what: str, module: nn.Module | None = None) -> Probe:
    best, begun = None, time.perf_counter()
    for grad in [False, True] if call.replay.grad else [False]:  # code that asks for gradients fails without
        trials = resized(call.replay, old, new)
        for number, (args, kwargs) in enumerate(trials):
            probe = Probe(what, new, ambiguous=number > 0)
            run_again(probe, call.replay, module or call.replay.module, args, kwargs, grad)
            align(call, probe)
            if best is None or (probe.complete, probe.aligned) > (best.complete, best.aligned):
                best = probe
            if best.complete or time.perf_counter() - begun > MAX_SECONDS:
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
    probe.complete = probe.parted is None and probe.error is None


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
