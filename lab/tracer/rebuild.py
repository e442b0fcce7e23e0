"""The same kind of module made anew in other sizes."""

from __future__ import annotations

import inspect
import itertools
import time
import types
from typing import Any

import torch
from torch import nn

from lab.tracer.inputs import evaluate
from lab.tracer.isolate import duplicate, is_hooks
from lab.tracer.sizes import INPUTS, LETTERS, SMALL, Namer, field_of, sizes_of, with_sizes

MAX_SECONDS = 2.0  # of processor time, spent on finding out what a module was made with


def rebuilt(module: nn.Module, old_config: Any, new_config: Any, sizes: tuple[dict, dict]) -> nn.Module:
    """The same kind of module made anew from another config. Raises ValueError where it can't be told how.

    A part that was put in place of another after construction is made anew by itself.
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile wrapped
    new = _construct(module, old_config, new_config, sizes)
    _adapt(module, new, old_config, new_config, sizes)
    return new


def _adapt(module: nn.Module, twin: nn.Module, old_config: Any, new_config: Any, sizes: tuple) -> None:
    """Gives a new module what the old one was given after construction: switches, attributes, hooks, other parts."""
    for name, value in vars(module).items():
        is_new = name not in vars(twin) and not isinstance(value, (torch.Tensor, types.FunctionType))
        if is_new or type(value) in (bool, str):
            vars(twin)[name] = duplicate(value, {})
        elif is_hooks(name) and value and not vars(twin)[name]:
            vars(twin)[name].update(value)
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
        elif _letters_of(value):  # a config of its own
            given[name] = with_sizes(value, _renewed(value, sizes))
        elif isinstance(value, nn.Module) and parameter.default in (None, inspect.Parameter.empty):
            given[name] = rebuilt(value, old_config, new_config, sizes)
        elif isinstance(parameter.default, bool) and (value is None or isinstance(value, torch.Tensor)):
            given[name] = value is not None  # bias=True is kept as the bias itself
        elif isinstance(value, (int, str, float, tuple)) or value is None:
            given[name] = _other_value(name, value, sizes)
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
    begun = time.thread_time()
    for choice in itertools.product(*(_candidates(cls, name, own) for name in missing)):
        if 0 in fits or time.thread_time() - begun > MAX_SECONDS:
            break
        try:
            made = cls(**known, **{name: own[letter] for name, letter in zip(missing, choice) if letter})
        except Exception:  # sizes that it refuses: not these
            continue
        if shapes_in(made) == shapes_in(module):
            strange = sum(bool(letter) and name not in LETTERS.get(letter, ()) for name, letter in zip(missing, choice))
            fits.setdefault(strange, []).append(choice)
    best = fits[min(fits)] if fits else []
    if len(best) == 1 and (shapes_in(module) or 0 in fits):
        return {name: new[letter] for name, letter in zip(missing, best[0]) if letter}
    raise ValueError(f"it is not known what {cls.__name__}({', '.join(missing) or '…'}) was made with")


def _candidates(cls: type, name: str, own: dict[str, int]) -> list[str]:
    """Letters whose size a parameter may have been given; "" stands for its default."""
    has_default = inspect.signature(cls.__init__).parameters[name].default is not inspect.Parameter.empty
    return [""] * has_default + sorted(own, key=lambda letter: name not in LETTERS.get(letter, ()))


def _may_be_size(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty or type(parameter.default) is int


def shapes_in(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in [*module.named_parameters(), *module.named_buffers()]}


def _letters_of(value: Any) -> list[str]:
    """The letters whose sizes an object holds, if it is a config; a module is none, though it may hold some."""
    if isinstance(value, (nn.Module, type, inspect.Parameter)) or value is None:
        return []
    return [letter for letter in LETTERS if field_of(value, letter) is not None]


def _renewed(config: Any, sizes: tuple[dict, dict]) -> dict[str, int]:
    """The new sizes for those fields of a config that held the old ones."""
    held = sizes_of(config)
    return {letter: sizes[1][letter] for letter in held if sizes[0].get(letter) == held[letter]}


def _is_config(name: str, parameter: inspect.Parameter, value: Any, config: Any) -> bool:
    if value is config:
        return True
    if name not in ("cfg", "config", "conf", "hparams") or not _letters_of(config):
        return False
    untyped = parameter.annotation is inspect.Parameter.empty and value is inspect.Parameter.empty
    return untyped or parameter.annotation in (type(config), type(config).__name__) or type(value) is type(config)


def _other_value(name: str, value: Any, sizes: tuple[dict, dict]) -> Any:
    """A small number under a name of its own is as likely a count of layers or the width of a kernel: it stays."""
    if isinstance(value, tuple):
        return tuple(_other_value(name, item, sizes) for item in value)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    speaks = any(name in fields for fields in LETTERS.values())
    return _other_size(value, *sizes) if value > SMALL or speaks else value


def _other_size(value: int, old: dict[str, int], new: dict[str, int]) -> int:
    """What a size becomes that is kept as a number: that of the one letter, or of the one likely product, it equals."""
    own = {name: size for name, size in old.items() if name not in INPUTS}
    matches = {new[name] for name in own if own[name] == value}
    if not matches:
        matches = {evaluate(text, new) for text in Namer([own]).fits((value,))}
    return matches.pop() if len(matches) == 1 else value
