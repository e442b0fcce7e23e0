"""What a recording consists of: calls of modules and functions, and the torch operations inside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

from torch import nn

from lab.tracer.frames import Argument
from lab.tracer.values import Info, Value


class Scope:
    """One call of a module's `forward`, of a method or of a function."""

    owner = ""  # class of the module whose method this is; "" for a plain function
    path = ""  # of that module inside the traced model; "" for the model itself
    module: nn.Module | None = None  # only while recording
    training: bool | None = None
    frame: FrameType | None = None  # only while recording
    lasti = -1  # where in the parent's code this call stands
    last_line = 0  # where it returned or failed
    arguments: tuple[Argument, ...] = ()
    output: Info | None = None
    failed = False
    saved = 0  # bytes saved for backward by this scope outside of its operations
    seconds = 0.0
    flops: int | None = None  # of everything inside, once it was counted (see cost.py)
    replay: Any = None  # what is needed to make an outermost call again
    first_value = 0  # of an outermost call: how many tensors had been seen before it

    def __init__(self, code: CodeType, parent: Scope | None):
        self.code, self.parent = code, parent
        self.function = code.co_name
        self.children: list[Scope | Op] = []

    @property
    def is_module(self) -> bool:
        return bool(self.owner) and self.function == "forward"

    def title(self) -> str:
        """Where in the model: `layers.0.attn`, `layers.0.attn › project()`."""
        path = self.path or self.owner
        return path if self.is_module else f"{path} › {self.function}()" if self.owner else f"{self.function}()"

    def walk(self) -> Iterator[Scope | Op]:
        """This scope and everything inside it, in the order of execution."""
        yield self
        for child in self.children:
            if isinstance(child, Op):
                yield child
            else:
                yield from child.walk()


class Op:
    """One call into torch. `args` and `kwargs` hold a `Value` where there was a tensor."""

    output: Any = None  # a Value, or a tuple with Values in it
    failed = False
    saved = 0  # bytes saved for backward
    seconds = 0.0
    flops: int | None = None
    storages: tuple[int, ...] = ()  # of the first input and the first output, for operations that may copy

    def __init__(self, func: Callable, name: str, parent: Scope, args: tuple, kwargs: dict[str, Any]):
        self.func, self.name, self.parent = func, name, parent
        self.lasti = parent.frame.f_lasti
        self.args, self.kwargs = args, kwargs

    @property
    def code(self) -> CodeType:
        return self.parent.code

    def inputs(self) -> list[Value]:
        return list(_values(self.args)) + list(_values(self.kwargs))

    def outputs(self) -> list[Value]:
        return list(_values(self.output))

    def walk(self) -> Iterator[Op]:
        yield self


def _values(tree: Any) -> Iterator[Value]:
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _values(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _values(item)
