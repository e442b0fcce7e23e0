"""Making a recorded call again with other sizes, without leaving a trace of it.

Three runs, under `no_grad`: one token fewer, one batch row more, and other sizes of the model itself. What comes of it:
names for dimensions (`sizes.Namer`), and shape coincidences: a transpose that was forgotten, and only worked because T
happened to equal K, fails here.

Nothing a probe does is seen afterwards. While one runs, every module holds copies of its parameters, buffers and plain
attributes; its own objects are put back at the end, so that not even a version counter has moved. Inputs are copied
before the call, and the random state is restored.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import itertools
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import nn

from lab.tracer.record import Op, Recorder, Scope
from lab.tracer.sizes import Namer, other_sizes, sizes_of, with_sizes
from lab.tracer.values import Value, tensors_in

MAX_TRIALS = 12  # readings of ambiguous inputs that are tried for one probe


@dataclass
class Replay:
    """What is needed to make an outermost call again: copies of its inputs, as they were before the call."""

    module: nn.Module | None
    function: str
    args: list
    kwargs: dict
    letters: dict[str, int]  # B, T, S: the sizes that the inputs themselves show
    autocast: tuple[bool, torch.dtype] = (False, torch.bfloat16)


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
    aligned: int = 0  # how many events of the recorded run happened here in the same order
    complete: bool = False  # the whole run took the same path


# --------------------------------------------------------------------------------------------------------------------
# Keeping the inputs of a call


def keep_inputs(letters: dict[str, int]) -> Callable:
    """A function that copies the inputs of a call. `letters`: the sizes known from the config, such as D."""

    def keep(call: tuple) -> Replay:
        module, function, args, kwargs = call
        memo: dict[int, Any] = {}
        args, kwargs = duplicate(args, memo), duplicate(kwargs, memo)
        found = batch_and_length([*args, *kwargs.values()], letters)
        autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        return Replay(module, function, args, kwargs, found, autocast)

    return keep


def batch_and_length(inputs: list, letters: dict[str, int]) -> dict[str, int]:
    """B and T, read off the first tensor that shows them: tokens (B, T) or activations (B, T, ...).

    S is the second dimension of another such tensor, where it differs from T: the keys to look at.
    """
    tensors = [t for t in inputs if isinstance(t, torch.Tensor)]
    found: dict[str, int] = {}
    for t in tensors:
        whole = not t.is_floating_point() and not t.is_complex() and t.dtype != torch.bool
        if not found and (t.ndim >= 3 or (t.ndim == 2 and whole)):
            found = {"B": t.shape[0], "T": t.shape[1]}
        elif not found and t.ndim == 1 and whole:
            found = {"T": t.shape[0]}
        elif (
            found
            and t.ndim == 3
            and t.shape[0] == found.get("B")
            and t.shape[2] in letters.values()
            and t.shape[1] != found["T"]
            and t.shape[1] not in letters.values()
        ):
            found.setdefault("S", t.shape[1])
    if not found and tensors and tensors[0].ndim:
        found = {"B": tensors[0].shape[0]}
    return found


_KEPT = (nn.Module, nn.Parameter, type, types.FunctionType, types.BuiltinFunctionType, str, bytes)


def duplicate(value: Any, memo: dict[int, Any]) -> Any:
    """A copy whose tensors share nothing with the original; modules, parameters and functions stay what they are."""
    if isinstance(
        value, nn.Module | nn.Parameter | type | types.FunctionType | types.BuiltinFunctionType | str | bytes
    ):
        return value
    if id(value) in memo:
        return memo[id(value)][1]
    made = _copy(value, memo)
    memo[id(value)] = (value, made)  # the original is kept so that its id stays its own
    return made


def _copy(value: Any, memo: dict) -> Any:
    if isinstance(value, torch.Tensor):
        return _copy_tensor(value)
    if isinstance(value, tuple):
        items = [duplicate(item, memo) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, list | set):
        return type(value)(duplicate(item, memo) for item in value)
    if isinstance(value, dict):
        new = copy.copy(value)
        for key, item in value.items():
            new[key] = duplicate(item, memo)
        return new
    if isinstance(value, types.MethodType | types.ModuleType | types.GeneratorType):
        return value
    if is_dataclass(value) or type(value).__module__ not in ("builtins", "torch"):
        return _copy_object(value, memo)
    return value


def _copy_tensor(tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        made = tensor.detach().clone()
    return made.requires_grad_(tensor.requires_grad and tensor.is_leaf)


def _copy_object(value: Any, memo: dict) -> Any:
    attributes = getattr(value, "__dict__", None)
    if not attributes:
        return value
    try:
        made = copy.copy(value)
        made.__dict__.update({name: duplicate(item, memo) for name, item in attributes.items()})
    except Exception:  # an object that refuses to be copied is used as it is
        return value
    return made


# --------------------------------------------------------------------------------------------------------------------
# Leaving everything as it was


@contextlib.contextmanager
def nothing_changes(*modules: nn.Module) -> Iterator[None]:
    """Within the block modules work on copies of all they hold; random states, output and warnings are put aside."""
    memo: dict[int, Any] = {}
    everything = {id(m): m for module in modules for m in module.modules()}.values()
    kept = [(module, dict(module.__dict__)) for module in everything]
    states = torch.get_rng_state(), random.getstate(), _numpy_state(), _cuda_states()
    try:
        for module, attributes in kept:
            module.__dict__.update({name: _stand_in(name, value, memo) for name, value in attributes.items()})
        with (
            torch.no_grad(),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, attributes in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if states[2] is not None:
            sys.modules["numpy"].random.set_state(states[2])
        if states[3]:
            torch.cuda.set_rng_state_all(states[3])


def _stand_in(name: str, value: Any, memo: dict) -> Any:
    if name == "_parameters":
        return {key: _stand_in_parameter(parameter, memo) for key, parameter in value.items()}
    if name == "_modules":
        return dict(value)
    if name.endswith("_hooks") or "_hooks_" in name:  # weight norm and the like live in hooks: they go on working
        return value
    return duplicate(value, memo)


def _stand_in_parameter(parameter: nn.Parameter | None, memo: dict) -> nn.Parameter | None:
    if parameter is None or nn.parameter.is_lazy(parameter):
        return parameter
    if id(parameter) not in memo:
        made = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        memo[id(parameter)] = (parameter, made)
    return memo[id(parameter)][1]


def _numpy_state() -> Any:
    return sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None


def _cuda_states() -> list:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []


# --------------------------------------------------------------------------------------------------------------------
# Other inputs


def resized(replay: Replay, old: dict[str, int], new: dict[str, int]) -> Iterator[tuple[list, dict]]:
    """The inputs of a call with other sizes, in each way they can be read, likeliest first.

    A dimension is taken for the letters whose size it has. Where that is ambiguous (16 may be T or K), equal sizes
    are read alike and the readings are tried in turn.
    """
    inputs = [replay.args, replay.kwargs]
    primary = _first_tensor(inputs)
    sizes = sorted({size for tensor in _tensors(inputs) for size in tensor.shape if size > 1})
    readings = {size: _readings(size, old, new) for size in sizes}
    seen = set()
    for choice in itertools.product(*readings.values()):
        if len(seen) >= MAX_TRIALS:
            return
        becomes = dict(zip(readings, choice, strict=True))
        if tuple(choice) in seen:
            continue
        seen.add(tuple(choice))
        memo: dict[int, Any] = {}
        yield _resize(inputs, becomes, primary, (old, new), memo)


def _first_tensor(inputs: Any) -> torch.Tensor | None:
    return next(iter(_tensors(inputs)), None)


def _readings(size: int, old: dict[str, int], new: dict[str, int]) -> list[int]:
    """What a dimension of this size may become, likeliest first."""
    found = [new[name] for name in ("T", "S", "B", *(n for n in old if n not in "TSB")) if old.get(name) == size]
    namer = Namer([old])
    if not found:
        for text in namer.fits((size,)):
            found.append(_evaluate(text, new))
        if size % 2 == 1 and old.get("T") == size - 1 and "T" in new:  # one more: BOS, a shifted target
            found.append(new["T"] + 1)
    return list(dict.fromkeys(value for value in [*found, size] if value))


def _evaluate(formula: str, sizes: dict[str, int]) -> int:
    """The value of one of the formulas that one run alone can give: X, X·Y, X/2, 2·X, or a number."""
    product = 1
    numerator, _, denominator = formula.partition("/")
    for factor in numerator.split("·"):
        product *= sizes[factor] if factor in sizes else int(factor)
    return product // int(denominator or 1)


def _tensors(value: Any, depth: int = 0, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    seen = set() if seen is None else seen
    if isinstance(value, nn.Module | nn.Parameter) or id(value) in seen or depth > 5:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item, depth + 1, seen)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth + 1, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type | types.FunctionType | types.ModuleType):
        yield from _tensors(vars(value), depth + 1, seen)


def _resize(inputs: Any, becomes: dict[int, int], primary: Any, letters: tuple, memo: dict) -> Any:
    made = duplicate(inputs, memo)
    for original, twin in [entry for entry in memo.values() if isinstance(entry[0], torch.Tensor)]:
        target = [becomes.get(size, size) for size in original.shape]
        if original is primary:
            target = _primary_shape(original, target, *letters)
        twin.data = _stretch(twin.detach(), target)
    return made


def _primary_shape(tensor: torch.Tensor, target: list[int], old: dict, new: dict) -> list[int]:
    """The first input's leading dimensions are B and T by their place, whatever their size."""
    leading = [name for name in ("B", "T") if name in old]
    if len(leading) <= tensor.ndim and all(tensor.shape[i] == old[name] for i, name in enumerate(leading)):
        return [new[name] for name in leading] + target[len(leading) :]
    return target


def _stretch(tensor: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """The tensor cut, or repeated from its beginning, to another shape."""
    for dim, size in enumerate(shape):
        if tensor.shape[dim] != size:
            index = torch.arange(size, device=tensor.device) % max(tensor.shape[dim], 1)
            tensor = tensor.index_select(dim, index)
    return tensor.clone()


# --------------------------------------------------------------------------------------------------------------------
# Other models


def rebuilt(module: nn.Module, old_config: Any, new_config: Any, sizes: tuple[dict, dict]) -> nn.Module:
    """The same kind of module made anew from another config. Raises ValueError where it can't be told how.

    A part that was put in place of another after construction is made anew by itself.
    """
    new = _construct(module, old_config, new_config, sizes)
    for name, child in module.named_children():
        twin = getattr(new, name, None)
        if type(twin) is not type(child):
            setattr(new, name, rebuilt(child, old_config, new_config, sizes))
        elif any(True for _ in child.children()):
            _align_children(child, twin, old_config, new_config, sizes)
    new.train(module.training)
    return new


def _align_children(module: nn.Module, twin: nn.Module, old_config: Any, new_config: Any, sizes: tuple) -> None:
    for name, child in module.named_children():
        other = getattr(twin, name, None)
        if type(other) is not type(child):
            setattr(twin, name, rebuilt(child, old_config, new_config, sizes))
        else:
            _align_children(child, other, old_config, new_config, sizes)


def _construct(module: nn.Module, old_config: Any, new_config: Any, sizes: tuple[dict, dict]) -> nn.Module:
    """Calls the class with what its constructor asks for: the config, or sizes kept under the parameter's name."""
    cls, given = type(module), {}
    if cls.__module__.startswith("torch."):
        raise ValueError(f"{cls.__name__} is not built from a config")
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(module, name, inspect.Parameter.empty)
        if _is_config(name, parameter, value, old_config):
            given[name] = new_config
        elif isinstance(value, int) and not isinstance(value, bool):
            given[name] = _other_size(value, *sizes)
        elif isinstance(value, str | float | bool | tuple):
            given[name] = value
        elif parameter.default is inspect.Parameter.empty:
            raise ValueError(f"{cls.__name__}({name}=…) is not built from a config alone")
    made = cls(**given)
    parameter = next(module.parameters(), None)
    return made if parameter is None else made.to(parameter.device, parameter.dtype)


def _is_config(name: str, parameter: inspect.Parameter, value: Any, config: Any) -> bool:
    if isinstance(config, dict):
        return False
    named = name in ("cfg", "config", "conf", "args", "hparams", "c")
    return value is config or (named and parameter.annotation in (inspect.Parameter.empty, type(config), "ModelConfig"))


def _other_size(value: int, old: dict[str, int], new: dict[str, int]) -> int:
    matches = {new[name] for name in old if old[name] == value and name not in ("B", "T", "S")}
    return matches.pop() if len(matches) == 1 else value


# --------------------------------------------------------------------------------------------------------------------
# The runs


def run_probes(call: Scope, config: Any) -> list[Probe]:
    """The runs of one recorded call with other sizes, as far as they took the same path as the recorded one."""
    replay: Replay = call.replay
    old = (sizes_of(config) if config is not None else {}) | replay.letters
    probes = []
    if "T" in replay.letters:
        length = old["T"] - 1 if old["T"] > 1 else old["T"] + 1
        probes.append(_probe(call, old, old | {"T": length}, f"T={length}"))
    if "B" in replay.letters:
        rows = old["B"] + 1
        other = {"B": rows} | ({"S": old["S"] + 1} if "S" in old else {})
        probes.append(_probe(call, old, old | other, f"B={rows}"))
    if config is not None and replay.module is not None:
        probes += _other_models(call, config, old)
    return probes


def _probe(call: Scope, old: dict, new: dict, what: str, module: nn.Module | None = None) -> Probe:
    best = None
    trials = list(resized(call.replay, old, new))
    for args, kwargs in trials:
        probe = Probe(what, new, ambiguous=len(trials) > 1)
        run_again(probe, call.replay, module or call.replay.module, args, kwargs)
        align(call, probe)
        if best is None or (probe.complete, probe.aligned) > (best.complete, best.aligned):
            best = probe
        if best.complete:
            break
    return best


def run_again(probe: Probe, replay: Replay, module: nn.Module, args: list, kwargs: dict) -> None:
    """Makes the call and notes in `probe` what was recorded, and the exception it ended with."""
    recorder = Recorder(module)
    before = sys.getprofile()
    sys.setprofile(None)
    try:
        with (
            nothing_changes(module),
            torch.autocast("cpu", enabled=replay.autocast[0], dtype=replay.autocast[1]),
            recorder,
        ):
            method = module if replay.function == "forward" else getattr(module, replay.function)
            method(*args, **kwargs)
    except Exception as error:
        probe.error = error.with_traceback(None)  # its frames hold tensors
        probe.failed_at = recorder.error[0] if recorder.error else None
    finally:
        sys.setprofile(before)
    probe.call = recorder.calls[0] if recorder.calls else None


def _other_models(call: Scope, config: Any, old: dict[str, int]) -> list[Probe]:
    """One run of a model of other sizes: the first that can be built and takes the same path."""
    own = {name: size for name, size in old.items() if name not in ("B", "T", "S")}
    relations = []
    if {"D", "H", "K"} <= own.keys() and own["D"] == own["H"] * own["K"]:
        relations.append("D=HK")
    if {"H", "G"} <= own.keys() and own["H"] == own["G"]:
        relations.append("H=G")
    best = None
    for count in range(len(relations) + 1):
        for tied in itertools.combinations(relations, count):
            probe = _other_model(call, config, old, own, frozenset(tied))
            if probe is not None and (best is None or (probe.complete, probe.aligned) > (best.complete, best.aligned)):
                best = probe
            if best is not None and best.complete:
                return [best]
    return [best] if best is not None else []


def _other_model(call: Scope, config: Any, old: dict[str, int], own: dict[str, int], tied: frozenset) -> Probe | None:
    sizes = other_sizes(own, tied)
    module = call.replay.module
    try:
        with nothing_changes():
            other_config = config if isinstance(config, dict) else with_sizes(config, sizes)
            other = rebuilt(module, config, other_config, (own, sizes))
    except Exception:  # a model that can't be built in other sizes is not probed in other sizes: the trace says so
        return None
    what = " ".join(f"{name}={size}" for name, size in sizes.items() if name in "DHGKF")
    return _probe(call, old, old | sizes, what, other)


def align(call: Scope, probe: Probe) -> None:
    """Pairs the tensors of the recorded run with those of the other one, as far as both took the same path."""
    if probe.call is None:
        return
    ours, theirs = list(_events(call)), list(_events(probe.call))
    for mine, other in zip(ours, theirs, strict=False):
        if mine[0] != other[0] or len(mine[1]) != len(other[1]):
            break
        pairs = list(zip(mine[1], other[1], strict=True))
        if any(len(a.shape or ()) != len(b.shape or ()) for a, b in pairs):
            break
        for a, b in pairs:
            probe.twins.setdefault(a.index, b)
        probe.aligned += 1
    probe.complete = probe.aligned == len(ours) == len(theirs) and probe.error is None


def _events(call: Scope) -> Iterator[tuple[tuple, list[Value]]]:
    """Everything that happened, as (what and where, tensors in sight), in the order of execution."""
    for item in call.walk():
        if isinstance(item, Op):
            yield ("op", item.name, id(item.code), item.lasti), item.inputs() + item.outputs()
        else:
            tensors = [value for argument in item.arguments for value in tensors_in(argument.info)]
            yield ("scope", item.function, id(item.code), item.lasti), tensors + list(tensors_in(item.output))
