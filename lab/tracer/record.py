"""Recording what runs: a tree of scopes (calls of modules and of one's own functions) and torch operations.

Two of Python's own instruments, both active only inside a session and both of this thread alone:

- `sys.setprofile` reports each Python call. The frame of a call of interest gives the arguments under their true names,
  keywords and defaults included, whether or not anything is decorated.
- `TorchFunctionMode` reports each call into torch's public interface: `x @ w`, `x.view(...)`, `F.softmax(x, -1)`.
  Where the innermost scope's frame stands at that moment (`f_lasti`) says which expression of which line it was.
"""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from lab.tracer.frames import MARKS, Argument, arguments_of, call_arguments, ends_normally, owner_of, set_profile
from lab.tracer.values import Info, Value, describe, tensors_in


class Scope:
    """One call of a module's `forward`, of a method or of a function."""

    __slots__ = (
        "arguments", "children", "code", "failed", "frame", "function", "last_line", "lasti", "module", "output",
        "owner", "parent", "path", "replay", "saved", "seconds", "training",
    )  # fmt: skip

    def __init__(self, code: CodeType, parent: Scope | None):
        self.code, self.parent = code, parent
        self.function = code.co_name
        self.owner = ""  # class of the module whose method this is; "" for a plain function
        self.path = ""  # of that module inside the traced model; "" for the model itself
        self.module: nn.Module | None = None  # only while recording
        self.training: bool | None = None
        self.frame: FrameType | None = None  # only while recording
        self.lasti = -1  # where in the parent's code this call stands
        self.last_line = 0  # where it returned or failed
        self.arguments: tuple[Argument, ...] = ()
        self.output: Info | None = None
        self.failed = False
        self.saved = 0  # bytes saved for backward by this scope outside of its operations
        self.seconds = 0.0
        self.children: list[Scope | Op] = []
        self.replay: Any = None  # what is needed to make an outermost call again

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
            yield from child.walk()


class Op:
    """One call into torch. `args` and `kwargs` hold a `Value` where there was a tensor."""

    __slots__ = (
        "args", "failed", "func", "kwargs", "lasti", "name", "output", "parent", "saved", "seconds", "storages",
    )  # fmt: skip

    def __init__(self, func: Callable, name: str, parent: Scope, lasti: int, args: Any, kwargs: Any):
        self.func, self.name, self.parent, self.lasti = func, name, parent, lasti
        self.args, self.kwargs = args, kwargs
        self.output: Any = None  # a Value, or a tuple or list with Values in it
        self.failed = False
        self.saved = 0
        self.seconds = 0.0
        self.storages: tuple[int, ...] = ()  # of the first input and the first output, for operations that may copy

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
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from _values(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _values(item)


# What may share its input's memory; asked only of these, because asking takes time.
VIEWS = {
    "view", "reshape", "transpose", "permute", "flatten", "unflatten", "contiguous", "expand", "squeeze", "unsqueeze",
    "__getitem__", "chunk", "split", "unbind", "to", "narrow", "select", "movedim", "swapaxes", "T", "mT", "view_as",
    "reshape_as", "expand_as", "float", "type_as", "unfold", "diagonal", "detach", "t", "clone", "rearrange",
}  # fmt: skip

_TORCH = str(Path(torch.__file__).parent)
_LAB = Path(__file__).parent.parent
FOREIGN = (  # code in these places is no one's own: its operations belong to the line that called it
    _TORCH, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), str(_LAB / "tracer"), str(_LAB / "live.py"),
)  # fmt: skip


class Recorder(TorchFunctionMode):
    """Records the calls made inside `model` between enter and exit, as `calls`: the outermost scopes.

    A profiler that was there before keeps receiving its events meanwhile and is put back at the end.
    `keep_inputs` is called with (frame, module) when an outermost call begins and returns what to keep of it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stats: Callable[[torch.Tensor], dict] | None = None,
        keep_inputs: Callable[[Any], Any] | None = None,
    ):
        super().__init__()
        self.calls: list[Scope] = []
        self.values: list[Value] = []
        self.error: tuple[Scope | Op, BaseException | None] | None = None  # the innermost thing that failed
        self._stats, self._keep_inputs = stats, keep_inputs
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._known: dict[int, tuple[Callable, Value]] = {}  # by id of the tensor; the first calls a weak reference
        self._weights = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
        self._files = {_file_of(type(module)) for module in model.modules()}
        self._codes: dict[int, tuple[CodeType, int]] = {}  # id -> (the code, kept so that ids stay unique; its kind)
        self._root = Scope(_NO_CODE, None)  # never ends; spares asking whether any scope is open
        self._stack = [self._root]
        self._current: Scope | Op = self._root
        self._saved: set[int] = {_storage(p) for p in model.parameters() if not nn.parameter.is_lazy(p)}
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    # ---- entering and leaving

    def __enter__(self) -> Recorder:
        super().__enter__()
        self._hooks.__enter__()
        self._before = sys.getprofile()
        self._profiler = self._profile_function()
        sys.setprofile(self._profiler)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if sys.getprofile() in (self._profiler, None):
            set_profile(self._before)
        self._hooks.__exit__()
        super().__exit__(kind, error, traceback)
        for scope in self._stack[1:]:
            scope.failed, scope.frame = True, None
        for call in self.calls:  # modules and frames hold tensors: let go of them
            for item in call.walk():
                if isinstance(item, Scope):
                    item.frame = item.module = None
        self._stack, self._known, self._current = [self._root], {}, self._root

    # ---- tensors

    def see(self, tensor: torch.Tensor) -> Value:
        """The `Value` of a tensor, made when it is met for the first time."""
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        with torch._C.DisableTorchFunction():
            value = Value(tensor)
        value.index = len(self.values)
        self.values.append(value)
        name = self._weights.get(id(tensor))
        if name is not None:
            value.origin, value.weight = name, True
        self._known[id(tensor)] = (weakref.ref(tensor), value)
        return value

    def _tree(self, value: Any) -> Any:
        """An argument with Values in the place of tensors, and only plain things beside them."""
        if isinstance(value, torch.Tensor):
            return self.see(value)
        if isinstance(value, tuple | list):
            return tuple(self._tree(item) for item in value)
        if isinstance(value, _KEPT):
            return value
        if isinstance(value, dict):
            return {key: self._tree(item) for key, item in value.items()}
        return type(value).__name__

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            storage = _storage(tensor)
            if storage not in self._saved:
                self._saved.add(storage)
                self._current.saved += tensor.untyped_storage().nbytes() if storage else 0
            return tensor.detach()  # the very tensor would keep its own graph alive

    # ---- operations

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.__name__
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
            if name in _PLAIN_GETTERS:
                return func(*args, **kwargs)
        if len(self._stack) == 1:
            return func(*args, **kwargs)
        if self._before is not None:
            return self._operation(func, name, args, kwargs)
        sys.setprofile(None)  # what happens inside an operation is no one's own code: not watching it halves the cost
        try:
            return self._operation(func, name, args, kwargs)
        finally:
            sys.setprofile(self._profiler)

    def _operation(self, func: Callable, name: str, args: Any, kwargs: Any) -> Any:
        scope = self._stack[-1]
        op = Op(func, name, scope, scope.frame.f_lasti, self._tree(args), self._tree(kwargs) if kwargs else kwargs)
        outer, self._current = self._current, op
        begun = time.perf_counter()
        try:
            output = func(*args, **kwargs)
        except BaseException as error:
            op.failed = True
            scope.children.append(op)
            self.error = (op, error)
            raise
        finally:
            self._current = outer
        op.seconds = time.perf_counter() - begun
        if self._note_output(op, output, args):
            scope.children.append(op)
        return output

    def _note_output(self, op: Op, output: Any, args: Any) -> bool:
        """Notes what an operation returned; says whether it is one that works on tensors at all."""
        if isinstance(output, torch.Tensor):
            if op.name[-1] == "_" and args and output is args[0]:  # in place: it may have another shape now
                self._known.pop(id(output), None)
            value = op.output = self.see(output)
            if value.maker is None and not value.weight:
                value.maker = op
        elif isinstance(output, tuple | list):
            op.output = self._tree(output)
            for value in op.outputs():
                value.maker = value.maker or op
            if not op.outputs():
                return False
        elif op.name != "__setitem__":
            return False
        if op.name in VIEWS and isinstance(args[0] if args else None, torch.Tensor) and output is not None:
            first = output if isinstance(output, torch.Tensor) else output[0]
            op.storages = (_storage(args[0]), _storage(first))
        if self._stats is not None:
            self._note_stats(op, output)
        return True

    def _note_stats(self, op: Op, output: Any) -> None:
        tensors = [output] if isinstance(output, torch.Tensor) else [t for t in output or () if torch.is_tensor(t)]
        for tensor in tensors:
            value = self.see(tensor)
            if value.stats is None:
                value.stats = self._stats(tensor)

    # ---- scopes

    def _profile_function(self) -> Callable:
        stack, codes, before = self._stack, self._codes, self._before
        enter, leave, classify = self._enter, self._leave, self._classify
        chained = before if callable(before) else None

        def profile(frame: FrameType, event: str, arg: Any) -> None:
            if event == "call":
                known = codes.get(id(frame.f_code))
                kind = known[1] if known is not None else classify(frame.f_code)
                if kind:
                    enter(frame, kind)
            elif event == "return" and stack[-1].frame is frame:
                leave(frame, arg)
            if chained is not None:
                chained(frame, event, arg)

        return profile

    def _classify(self, code: CodeType) -> int:
        """0: no scope; 1: a scope if it is a module's; 2: a scope."""
        name, file = code.co_name, code.co_filename
        if id(code) in MARKS:
            kind = 2
        elif name.startswith("<") or file == "<string>" or (name.startswith("__") and name != "__call__"):
            kind = 0  # comprehensions and lambdas count as a part of the line they stand in
        elif file.startswith(FOREIGN) and (file not in self._files or file.startswith(_TORCH)):
            kind = 1 if name == "forward" else 0
        else:
            kind = 2
        self._codes[id(code)] = (code, kind)
        return kind

    def _enter(self, frame: FrameType, kind: int) -> None:
        stack = self._stack
        with torch._C.DisableTorchFunction():
            owner = owner_of(frame)
            if owner is None and (kind == 1 or len(stack) == 1):
                return
            path = self._paths.get(id(owner)) if owner is not None else ""
            if path is None:
                if len(stack) == 1:
                    return  # not a part of this model
                path = stack[-1].path
            parent = stack[-1]
            scope = Scope(frame.f_code, parent)
            scope.frame = frame
            scope.lasti = parent.frame.f_lasti if parent.frame is not None else -1
            if owner is not None:
                scope.owner, scope.training, scope.module = type(owner).__name__, owner.training, owner
                scope.path = path if len(stack) == 1 else self._path_from(parent, owner, path)
            else:
                scope.path = parent.path
            scope.arguments = arguments_of(frame, owner, self.see)
            for argument in scope.arguments:
                for value in tensors_in(argument.info):
                    if value.maker is None and not value.origin:
                        where = f"{scope.owner}.{scope.function}" if scope.owner else scope.function
                        value.origin = f"argument {argument.name!r} of {where}"
            if len(stack) == 1:
                self.calls.append(scope)
                if self._keep_inputs is not None:
                    scope.replay = self._keep_inputs((owner, scope.function, *call_arguments(frame, owner)))
            else:
                parent.children.append(scope)
        stack.append(scope)
        self._current = scope
        scope.seconds = time.perf_counter()

    def _path_from(self, parent: Scope, owner: nn.Module, path: str) -> str:
        """A module that stands at several places has several paths: take the one below the module that called it."""
        if parent.module is None or owner is parent.module or path.startswith(parent.path):
            return path
        for name, child in parent.module.named_children():
            if child is owner:
                return f"{parent.path}.{name}" if parent.path else name
        return path

    def _leave(self, frame: FrameType, output: Any) -> None:
        stack = self._stack
        scope = stack.pop()
        scope.seconds = time.perf_counter() - scope.seconds
        scope.last_line = frame.f_lineno
        self._current = stack[-1]
        with torch._C.DisableTorchFunction():
            if output is None and not ends_normally(frame):
                scope.failed = True
                if self.error is None:
                    self.error = (scope, None)
            else:
                scope.output = describe(output, self.see)
                self.error = None  # what failed inside was caught inside
        if not scope.failed:
            scope.frame = None


def _unpack(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _storage(tensor: torch.Tensor) -> int:
    """Where a tensor's memory begins; 0 for tensors that have none of their own (meta, sparse, subclasses)."""
    with contextlib.suppress(RuntimeError, NotImplementedError):
        return tensor.untyped_storage().data_ptr()
    return 0


def _file_of(cls: type) -> str:
    forward = getattr(cls, "forward", None)
    return getattr(getattr(forward, "__code__", None), "co_filename", "")


_NO_CODE = compile("", "<none>", "exec")
_KEPT = (bool, int, float, complex, str, slice, torch.dtype, torch.device, type(None), type(Ellipsis))
_PLAIN_GETTERS = {
    "shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_leaf", "layout", "grad_fn", "is_sparse",
    "names", "is_nested", "is_mps", "is_cpu", "is_meta", "is_quantized", "itemsize", "nbytes", "_version",
    "output_nr", "grad",
}  # fmt: skip
