"""Where in a model its modules and tensors stand."""

from __future__ import annotations

from itertools import islice

import torch
from torch import nn

from lab.tracer.calls import Scope

MANY = 1000  # of longer lists and dicts in plain attributes only the beginning is searched for modules and tensors


class Places:
    """The paths of a model's modules and tensors. `files`: those that its classes are written in."""

    def __init__(self, model: nn.Module):
        self.modules: dict[int, list[str]] = {}  # by id of the module: the paths of all places it stands at
        self.tensors: dict[int, tuple[torch.Tensor, str, bool]] = {}  # by id: tensor, path, whether it is registered
        self.files: set[str] = set()
        self._held: list[nn.Module] = []  # so that ids stay unique
        for path, module in model.named_modules(remove_duplicate=False):
            self._add(clean_path(path), module)

    def _add(self, path: str, module: nn.Module) -> None:
        places = self.modules.setdefault(id(module), [])
        places.append(path)
        if len(places) > 1:
            return
        self._held.append(module)
        self.files.add(_file_of(type(module)))
        prefix = f"{path}." if path else ""
        for kept in (module._parameters, module._buffers):
            self._add_tensors(prefix, kept, weight=True)
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                self._add_tensors(prefix, {name: value}, weight=False)
            elif type(value) in (list, tuple, dict) and value and name[0] != "_":
                self._add_hidden(f"{prefix}{name}", value)

    def _add_tensors(self, prefix: str, tensors: dict[str, torch.Tensor | None], weight: bool) -> None:
        for name, tensor in tensors.items():
            if tensor is not None:
                self.tensors.setdefault(id(tensor), (tensor, prefix + name, weight))

    def _add_hidden(self, path: str, items: list | tuple | dict) -> None:
        """Modules and tensors in plain lists and dicts, which PyTorch itself does not know of."""
        for key, item in islice(items.items() if isinstance(items, dict) else enumerate(items), MANY):
            if isinstance(item, nn.Module) and id(item) not in self.modules:
                for inner, module in item.named_modules():
                    self._add(f"{path}[{key}].{inner}".removesuffix("."), module)
            elif isinstance(item, torch.Tensor):
                self._add_tensors("", {f"{path}[{key}]": item}, weight=False)

    def path_of(self, module: nn.Module, parent: Scope) -> str | None:
        """The path of a module that is called within `parent`; None if it is not a part of the model.

        A module that stands at several places is taken to be called in their order, below the module that calls it.
        """
        places = self.modules.get(id(module))
        if places is None:
            return parent.path if parent.parent is not None else None
        if len(places) == 1 or parent.module is module:
            return places[0] if len(places) == 1 else parent.path
        prefix = f"{parent.path}." if parent.path else ""
        below = [path for path in places if path.startswith(prefix)] or places
        before = sum(1 for child in parent.children if isinstance(child, Scope) and child.module is module)
        return below[before % len(below)]


def clean_path(path: str) -> str:
    """A module's path without the names that torch.compile puts into it."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")


def _file_of(cls: type) -> str:
    forward = getattr(cls, "forward", None)
    return getattr(getattr(forward, "__code__", None), "co_filename", "")
