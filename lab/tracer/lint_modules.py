"""Lints about the modules themselves: parts that PyTorch does not know of, and parts that are never called."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
from collections.abc import Iterator
from types import CodeType
from typing import Any

import torch
from torch import nn

from lab.tracer.lint_base import Lint
from lab.tracer.record import Op, Scope
from lab.tracer.source import function_node

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.Identity)
MAX_DEPTH = 3

# --------------------------------------------------------------------------------------------------------------------
# Hidden from PyTorch


def hidden(trace) -> Iterator[Lint]:
    """Tensors, parameters and modules in plain attributes, lists or dicts, unless they are registered elsewhere."""
    model: nn.Module = trace.model
    known = {id(m) for m in model.modules()} | {id(p) for p in model.parameters()} | {id(b) for b in model.buffers()}
    for path, module in model.named_modules():
        if _is_torchs(type(module)):
            continue
        for name, value in vars(module).items():
            own = name not in (*_TORCHS_OWN, "cfg", "config") and value is not trace.names
            found = [part for part in _parts(value) if id(part) not in known] if own else []
            text = _hidden_text(module, name, value, found)
            if text:
                where = f"{path}.{name}" if path else name
                yield Lint("hidden", f"self.{name} of {where.rpartition('.')[0] or type(module).__name__} {text}",
                           *_place(type(module), name))  # fmt: skip


_TORCHS_OWN = set(vars(nn.Module()))


def _parts(value: Any, depth: int = 0) -> Iterator[Any]:
    """The tensors and modules of an attribute that is one, or a list, tuple or dict of such."""
    if isinstance(value, torch.Tensor | nn.Module):
        yield value
    elif isinstance(value, dict | list | tuple | set) and depth < MAX_DEPTH:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _parts(item, depth + 1)


def _hidden_text(module: nn.Module, name: str, value: Any, found: list) -> str:
    modules = [part for part in found if isinstance(part, nn.Module)]
    parameters = [part for part in found if isinstance(part, nn.Parameter)]
    if modules:
        remedy = f"use {'nn.ModuleDict' if isinstance(value, dict) else 'nn.ModuleList'}"
        return (
            f"holds {type(modules[0]).__name__}, which PyTorch can't see in a plain {type(value).__name__}: it is not "
            f"trained, moved or saved; {remedy}"
        )
    if parameters:
        return (
            f"holds a Parameter that PyTorch can't see in a plain {type(value).__name__}: it is not trained, moved or "
            f"saved; use {'nn.ParameterDict' if isinstance(value, dict) else 'nn.ParameterList'}"
        )
    tensors = [part for part in found if part.grad_fn is None]
    if not tensors or _is_set_outside_init(type(module), name):
        return ""
    return f"is a tensor that is no buffer: it does not move with .to(device); use self.register_buffer({name!r}, …)"


def _functions(cls: type) -> Iterator[tuple[CodeType, ast.AST]]:
    """The methods of a class and of its bases that are not PyTorch's, with their source."""
    for owner in cls.__mro__:
        if _is_torchs(owner) or owner is object:
            continue
        for member in vars(owner).values():
            code = getattr(inspect.unwrap(getattr(member, "__func__", member)), "__code__", None)
            node = function_node(code) if code is not None else None
            if node is not None:
                yield code, node


def _is_set_outside_init(cls: type, name: str) -> bool:
    """Whether a method stores into the attribute: then it is kept from call to call, such as a cache."""
    cached = isinstance(inspect.getattr_static(cls, name, None), functools.cached_property)
    return cached or any(code.co_name != "__init__" and _stores_into(node, name) for code, node in _functions(cls))


def _stores_into(function: ast.AST, name: str) -> bool:
    for node in ast.walk(function):
        target = node
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            target = node.func.value  # self.cache.append(x), self.cache.copy_(x)
        elif not isinstance(getattr(node, "ctx", None), ast.Store):
            continue
        while isinstance(target, ast.Subscript):
            target = target.value
        if _is_own_attribute(target, name):
            return not isinstance(node, ast.Call) or node.func.attr in _STORING or node.func.attr.endswith("_")
    return False


_STORING = {"append", "extend", "insert", "update", "setdefault", "add"}


def _is_own_attribute(node: ast.AST, name: str) -> bool:
    is_self = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    return is_self and node.attr == name


def _place(cls: type, name: str) -> tuple[str, int]:
    """Where an attribute is set, or else where the class begins."""
    functions = list(_functions(cls))
    for code, function in functions:
        for node in ast.walk(function):
            if _is_own_attribute(node, name) and isinstance(node.ctx, ast.Store):
                return code.co_filename, node.lineno
    inside = [(code.co_filename, node.parent.lineno) for code, node in functions if hasattr(node, "parent")]
    return inside[0] if inside else (cls.__module__, 0)


# --------------------------------------------------------------------------------------------------------------------
# Never called


def uncalled(trace) -> Iterator[Lint]:
    """Registered submodules that no recorded call reached, and none of whose weights or buffers was used directly."""
    whole = [call for call in trace.calls if call.path == "" and call.owner == type(trace.model).__name__]
    if trace.only is not None or not any(call.is_module and not call.failed for call in whole):
        return
    called, used = _reached(trace)
    for name, child in trace.model.named_children():
        yield from _below(name, child, (type(trace.model), name), called, used)


def _reached(trace) -> tuple[set[int], set[int]]:
    """Ids of the modules whose methods ran, and of the parameters and buffers that operations took."""
    model: nn.Module = trace.model
    weights = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    called, used = set(), set()
    for call in trace.calls:
        for item in call.walk():
            if isinstance(item, Scope) and item.owner:
                called.add(id(_at(model, item.path)))
            for value in item.inputs() if isinstance(item, Op) else ():
                if value.origin in weights:
                    used.add(id(weights[value.origin]))
    return called, used


def _at(model: nn.Module, path: str) -> Any:
    """What stands at a path such as `layers.0` or `order[0].proj`; None if there is nothing."""
    found: Any = model
    for part in filter(None, path.split(".")):
        name, _, key = part.partition("[")
        found = getattr(found, name, None)
        if key:
            items = dict(enumerate(found)) if isinstance(found, list | tuple) else found or {}
            found = {str(place): item for place, item in items.items()}.get(key.rstrip("]"))
    return found


def _below(path: str, module: nn.Module, home: tuple, called: set[int], used: set[int]) -> Iterator[Lint]:
    """The uncalled modules at and below one. `home`: the class of one's own, and its attribute, that it stands in."""
    bare = isinstance(module, _CONTAINERS) or type(module).forward is nn.Module.forward
    reached = id(module) in called or any(id(t) in used for t in itertools.chain(module.parameters(), module.buffers()))
    if not (bare or reached):
        text = f"{path} ({type(module).__name__}) was never called; call it in forward, or remove it"
        yield Lint("uncalled", text, *_place(*home))
        return
    foreign = _is_torchs(type(module))
    if foreign and not isinstance(module, (nn.Sequential, *_CONTAINERS)):
        return  # PyTorch's own modules may take shortcuts past their parts
    for name, child in module.named_children():
        yield from _below(f"{path}.{name}", child, home if foreign else (type(module), name), called, used)


def _is_torchs(cls: type) -> bool:
    return cls.__module__.startswith("torch.")
