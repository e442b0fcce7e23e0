"""The inputs of a recorded call: kept as they were before it, and made anew in other sizes."""

from __future__ import annotations

import contextlib
import itertools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lab.tracer.isolate import duplicate, slots_of
from lab.tracer.sizes import INPUTS, Namer
from lab.tracer.values import Value

MAX_PROBED = 4  # outermost calls that are made again with other sizes; later ones reuse what was learned
MAX_TRIALS = 12, 40  # readings of ambiguous inputs tried for one probe: sizes read alike, and each by itself


@dataclass
class Replay:
    """What is needed to make an outermost call again: copies of its inputs, as they were before the call."""

    module: nn.Module | None  # None where the inputs could not be copied, or are not kept any longer
    function: str
    args: list
    kwargs: dict
    letters: dict[str, int]  # B, T, S: the sizes that the inputs themselves show
    autocast: list[tuple[str, torch.dtype]] = field(default_factory=list)  # device types for which it was on
    grad: bool = False  # whether gradients were recorded
    known: list[tuple[torch.Tensor, Value]] = field(default_factory=list)  # of the copies, those met in earlier calls


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
        kept.append(Replay(None, function, [], {}, found, _autocast(), torch.is_grad_enabled()))
        with contextlib.suppress(RuntimeError):  # tensors inside of a function transform can't be copied
            _keep_copies(kept[-1], module, args, kwargs, known)
        return kept[-1]

    return keep


def _keep_copies(replay: Replay, module: nn.Module, args: list, kwargs: dict, known: Callable) -> None:
    memo: dict[int, Any] = {}
    replay.args, replay.kwargs = duplicate(args, memo), duplicate(kwargs, memo)
    copies = [(made, known(original)) for original, made in memo.values() if isinstance(original, torch.Tensor)]
    replay.known = [(made, value) for made, value in copies if value is not None]
    replay.module = module


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
            if evaluate(name, old) == value.shape[dim]:
                target[dim] = evaluate(name, new)
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
    found += [evaluate(text, new) for text in Namer([old]).guesses(size)]
    found += [new["T"] + n for n in (1, -1) if old.get("T", -9) + n == size]  # with BOS, or a shifted target
    return list(dict.fromkeys(value for value in [*found, size] if value))


def evaluate(formula: str, sizes: dict[str, int]) -> int:
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
