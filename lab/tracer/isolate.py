"""Running someone's code again without leaving a trace of it.

Within `nothing_changes(model)` every module holds copies of its parameters, buffers and plain attributes; its own
objects are put back at the end, so that not even a version counter has moved. Lists, dicts and names outside of the
modules that their code reads (a notebook's `shapes = []` that a hook appends to) get their contents back. Random states
are restored, and nothing is printed.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import random
import sys
import types
import warnings
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn

from lab.tracer.places import MANY
from lab.tracer.record import FOREIGN
from lab.tracer.values import PLAIN

# --------------------------------------------------------------------------------------------------------------------
# Copies

_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)
_KEPT = (*PLAIN, *_FUNCTIONS, nn.Module, nn.Parameter, type, types.ModuleType, torch.Size)


def duplicate(value: Any, memo: dict[int, Any]) -> Any:
    """A copy whose tensors share nothing with the original; modules, parameters and functions stay what they are.

    memo: (original, copy) by id of the original; what stands at several places is copied once.
    """
    if isinstance(value, _KEPT):
        return value
    if id(value) not in memo:
        if isinstance(value, tuple):
            items = [duplicate(item, memo) for item in value]
            made = type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        else:
            made = _shell(value)
        memo[id(value)] = (value, made)  # before it is filled: it may hold itself
        if made is not value and not isinstance(value, (torch.Tensor, tuple)):
            _fill(made, memo)
    return memo[id(value)][1]


def _shell(value: Any) -> Any:
    """A copy that still holds the original's parts."""
    if isinstance(value, torch.Tensor):
        return _copy_tensor(value)
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    deep = type(value).__module__.startswith("numpy.random")  # copies of a generator share the state within
    try:
        return copy.deepcopy(value) if deep else copy.copy(value)
    except Exception:  # what can't be copied, such as a lock or an open file, is used as it is
        return value


def _fill(made: Any, memo: dict) -> None:
    """Puts copies in the place of the parts of a fresh shell."""
    if isinstance(made, dict):
        for key, item in list(made.items()):
            dict.__setitem__(made, key, duplicate(item, memo))
    elif isinstance(made, (list, deque)):
        for index, item in enumerate(made):
            made[index] = duplicate(item, memo)
    elif isinstance(made, set):
        items = [duplicate(item, memo) for item in made]
        made.clear()
        made.update(items)
    attributes = getattr(made, "__dict__", {})
    for name, item in list(attributes.items()):
        attributes[name] = duplicate(item, memo)
    for name, item in slots_of(made).items():
        object.__setattr__(made, name, duplicate(item, memo))  # also where the class is frozen


def slots_of(value: Any) -> dict[str, Any]:
    """What an object holds in slots."""
    groups = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    names = [name for group in groups for name in ([group] if isinstance(group, str) else group)]
    return {name: getattr(value, name) for name in names if name[:2] != "__" and hasattr(value, name)}


def _copy_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same layout in memory of its own: whether `view` works depends on the layout."""
    with torch.no_grad():
        made = tensor.detach().clone()
        if tensor.layout == torch.strided and not tensor.is_nested and made.stride() != tensor.stride():
            storage = tensor.untyped_storage().clone()
            made = tensor.new_empty(0).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    return made.requires_grad_() if tensor.requires_grad and tensor.is_leaf else made


# --------------------------------------------------------------------------------------------------------------------
# Leaving everything as it was


@contextlib.contextmanager
def nothing_changes(*modules: nn.Module) -> Iterator[None]:
    """Within the block modules work on copies of all they hold, without gradients; see above for the rest."""
    memo: dict[int, Any] = {}
    kept = [(module, dict(vars(module))) for module in _all_modules(modules)]
    outside = Outside(module for module, _ in kept)
    states = torch.get_rng_state(), random.getstate(), _numpy_state(), _cuda_states()
    try:
        for module, attributes in kept:
            vars(module).update({name: _stand_in(name, value, memo) for name, value in attributes.items()})
        with (
            torch.no_grad(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, attributes in kept:
            vars(module).clear()
            vars(module).update(attributes)
        outside.restore()
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if states[2] is not None:
            sys.modules["numpy"].random.set_state(states[2])
        if states[3]:
            torch.cuda.set_rng_state_all(states[3])


def _all_modules(modules: tuple[nn.Module, ...]) -> list[nn.Module]:
    """All modules inside, those in plain lists and dicts included."""
    found: dict[int, nn.Module] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if id(module) in found or isinstance(module, torch.jit.ScriptModule):
            continue
        found[id(module)] = module
        for value in vars(module).values():
            items = value.values() if isinstance(value, dict) else value
            items = items if isinstance(value, (dict, list, tuple)) else [value]
            waiting += [item for item in islice(items, MANY) if isinstance(item, nn.Module)]
    return list(found.values())


def _stand_in(name: str, value: Any, memo: dict) -> Any:
    if name == "_parameters":
        return {key: _stand_in_parameter(parameter, memo) for key, parameter in value.items()}
    if name == "_modules":
        return dict(value)
    if is_hooks(name):  # weight norm and the like live in hooks: they go on working
        return value
    return duplicate(value, memo)


def is_hooks(name: str) -> bool:
    """Whether a module keeps hooks under this attribute."""
    return name.endswith("_hooks") or "_hooks_" in name


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
# What code reads from outside of the modules


class Outside:
    """Remembers what the code of modules and their hooks reads from outside: globals, closures, class attributes.

    Names are bound again to what they were, and lists, dicts, sets and plain objects get their contents back.
    """

    def __init__(self, modules: Iterator[nn.Module]):
        self._names: list[tuple[dict | type, str, Any]] = []
        self._contents: list[tuple[Any, Any]] = []  # (container, shallow copy)
        self._seen: set[int] = set()
        for module in modules:
            self._class(type(module))
            for name, hooks in vars(module).items():
                if is_hooks(name) and isinstance(hooks, dict):
                    self._container(hooks, 0)

    def restore(self) -> None:
        for owner, name, value in self._names:
            if isinstance(owner, type):
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)
            elif owner.get(name) is not value:
                owner[name] = value
        for container, contents in self._contents:
            if len(container) == len(contents) and all(a is b for a, b in zip(_items(container), _items(contents))):
                continue
            if isinstance(container, (list, deque)):
                container.clear()
                container.extend(contents)
            else:
                container.clear()
                container.update(contents)

    def _class(self, cls: type) -> None:
        for base in cls.__mro__:
            file = getattr(sys.modules.get(base.__module__), "__file__", None) or ""
            if id(base) in self._seen or base is object or file.startswith(FOREIGN):
                continue
            self._seen.add(id(base))
            for name, value in list(vars(base).items()):
                if name[:2] != "__" or inspect.isfunction(value):
                    self._names.append((base, name, value))
                    self._values([value])

    def _values(self, values: Any, depth: int = 0) -> None:
        for value in values:
            if isinstance(value, types.MethodType) and _is_plain_object(value.__self__):
                self._container(vars(value.__self__), depth)
            value = getattr(value, "__func__", value)  # of bound, class and static methods
            if isinstance(value, types.FunctionType):
                self._function(inspect.unwrap(value))
            elif isinstance(value, (list, dict, set, deque)):
                self._container(value, depth)
            elif _is_plain_object(value):
                self._container(vars(value), depth)

    def _function(self, function: Any) -> None:
        code = getattr(function, "__code__", None)
        if code is None or id(function) in self._seen or code.co_filename.startswith(FOREIGN):
            return
        self._seen.add(id(function))
        known = function.__globals__
        for name in _names_in(code):
            if name in known:
                self._names.append((known, name, known[name]))
                self._values([known[name]])
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # a cell that is still empty
                self._values([cell.cell_contents])
        self._values(function.__defaults__ or ())

    def _container(self, container: Any, depth: int) -> None:
        if id(container) in self._seen:
            return
        self._seen.add(id(container))
        self._contents.append((container, copy.copy(container)))
        if depth < 3 and len(container) <= MANY:
            self._values(container.values() if isinstance(container, dict) else container, depth + 1)


def _items(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _is_plain_object(value: Any) -> bool:
    """Whether it is an object of a class of someone's own."""
    file = getattr(sys.modules.get(type(value).__module__), "__file__", None) or ""
    own = type(value).__module__ == "__main__" or (file and not file.startswith(FOREIGN))
    return own and hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type, types.ModuleType))


def _names_in(code: types.CodeType) -> set[str]:
    """The global names that a function and those written inside it may read."""
    inner = (_names_in(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)
