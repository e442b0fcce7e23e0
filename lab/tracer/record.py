"""Recording what runs: a tree of scopes (calls of modules and of one's own functions) and torch operations.

Two of Python's own instruments, both active only inside a session and both of this thread alone:

- `sys.setprofile` reports each Python call. The frame of a call of interest gives the arguments under their true names,
  keywords and defaults included, whether or not anything is decorated.
- `TorchFunctionMode` reports each call into torch's public interface: `x @ w`, `x.view(...)`, `F.softmax(x, -1)`.
  Where the innermost scope's frame stands at that moment (`f_lasti`) says which expression of which line it was.

Everything here runs once or more for each operation of the model, so it is written to be quick: a forward pass of small
layers should take at most three times as long while it is recorded.
"""

from __future__ import annotations

import inspect
import os
import site
import sys
import sysconfig
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import disable_saved_tensors_hooks, saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from lab.tracer.calls import Op, Scope
from lab.tracer.frames import MARKS, SEE_THROUGH, arguments_of, call_arguments, ends_normally, owner_of, set_profile
from lab.tracer.places import Places
from lab.tracer.values import PLAIN, Value, describe, tensors_in

# What may share its input's memory; asked only of these, because asking takes time.
VIEWS = {
    "view", "reshape", "transpose", "permute", "flatten", "unflatten", "contiguous", "expand", "squeeze", "unsqueeze",
    "__getitem__", "chunk", "split", "unbind", "to", "narrow", "select", "movedim", "swapaxes", "T", "mT", "view_as",
    "reshape_as", "expand_as", "float", "type_as", "unfold", "diagonal", "detach", "t", "clone",
}  # fmt: skip

# Questions to a tensor that are no operations.
_GETTERS = {
    "shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "is_leaf", "layout", "grad_fn", "is_sparse",
    "names", "is_nested", "is_mps", "is_cpu", "is_meta", "is_quantized", "itemsize", "nbytes", "_version",
    "output_nr", "grad",
}  # fmt: skip

_TORCH = str(Path(torch.__file__).parent) + os.sep
_LAB = Path(__file__).parent.parent
FOREIGN = (  # code in these places is no one's own: its operations belong to the line that called it
    _TORCH, sysconfig.get_path("stdlib") + os.sep, sysconfig.get_path("purelib") + os.sep, *site.getsitepackages(),
    site.getusersitepackages(), str(_LAB / "tracer") + os.sep, str(_LAB / "live.py"), "<frozen ", "<string>",
)  # fmt: skip

NO_SCOPE, IF_FORWARD, SCOPE, STOPS_HOOKS = range(4)  # kinds of code: a scope never, if a module's forward, always, ...
_GENERATOR = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_NO_CODE = compile("", "<none>", "exec")
_PLAIN = frozenset(PLAIN)


class Recorder(TorchFunctionMode):
    """Records the calls made inside `model` between enter and exit, as `calls`: the outermost scopes.

    A profiler that was there before keeps receiving its events meanwhile and is put back at the end.

    stats: called with each tensor that is made, for its `Value.stats`.
    keep_inputs: called when an outermost call begins with (module, function, args, kwargs) and a function that gives
    the Value of a tensor met before, or None; what it returns becomes the scope's `replay`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stats: Callable[[torch.Tensor], dict] | None = None,
        keep_inputs: Callable[[tuple, Callable], Any] | None = None,
    ):
        super().__init__()
        self.calls: list[Scope] = []
        self.values: list[Value] = []
        self.error: tuple[Scope | Op, BaseException | None] | None = None  # the innermost thing that failed
        self.notes: list[str] = []  # what could not be recorded, and why
        self._stats, self._keep_inputs = stats, keep_inputs
        self._model = Places(model)
        self._known: dict[int, tuple[Callable, Value]] = {}  # by id of the tensor; the first calls a weak reference
        self._kinds: dict[int, int] = {id(disable_saved_tensors_hooks.__wrapped__.__code__): STOPS_HOOKS}
        self._codes: list[CodeType] = []  # held so that their ids stay unique
        self._root = Scope(_NO_CODE, None)  # never ends; spares asking whether any scope is open
        self._stack = [self._root]
        self._scopes: list[Scope] = []
        self._current: Scope | Op = self._root
        self._saved: set[int] = set()  # storages kept for backward by the outermost call that is open
        self._hooks: saved_tensors_hooks | None = None  # only inside the session

    # ---- entering and leaving

    def __enter__(self) -> Recorder:
        super().__enter__()
        self._hooks = saved_tensors_hooks(self._pack, _unpack)
        self._hooks.__enter__()
        self._before = sys.getprofile()
        self._profiler = self._profile_function()
        sys.setprofile(self._profiler)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if sys.getprofile() in (self._profiler, None):
            set_profile(self._before)
        self._stop_hooks()
        super().__exit__(kind, error, traceback)
        for scope in self._stack[1:]:
            scope.failed = True
        for scope in self._scopes:  # modules and frames hold tensors: let go of them
            scope.frame = scope.module = None
        self._stack, self._known, self._current = [self._root], {}, self._root
        self._scopes, self._codes, self._model = [], [], None

    def _stop_hooks(self) -> None:
        if self._hooks is not None:
            self._hooks.__exit__()
            self._hooks = None

    # ---- tensors

    def see(self, tensor: torch.Tensor) -> Value:
        """The `Value` of a tensor, made when it is met for the first time."""
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        with torch._C.DisableTorchFunction():
            return self._meet(tensor)

    def _meet(self, tensor: torch.Tensor) -> Value:
        value = Value(tensor)
        value.index = len(self.values)
        self.values.append(value)
        self._known[id(tensor)] = (weakref.ref(tensor), value)
        kept = self._model.tensors.get(id(tensor))
        if kept is not None and kept[0] is tensor:
            value.origin, value.weight = kept[1], kept[2]
        return value

    def _met_before(self, tensor: torch.Tensor) -> Value | None:
        known = self._known.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def _tree(self, value: Any) -> Any:
        """An argument of an operation, with Values in the place of tensors and only plain things beside them."""
        if isinstance(value, torch.Tensor):
            known = self._known.get(id(value))
            return known[1] if known is not None and known[0]() is value else self._meet(value)
        kind = type(value)
        if kind is slice:
            return slice(self._tree(value.start), self._tree(value.stop), self._tree(value.step))
        if kind in _PLAIN:
            return value
        if isinstance(value, (tuple, list)):
            return tuple([self._tree(item) for item in value])
        if isinstance(value, dict):
            return {key: self._tree(item) for key, item in value.items()}
        return value if isinstance(value, PLAIN) else kind.__name__

    def _pack(self, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        with torch._C.DisableTorchFunction():
            storage = _storage(tensor)
            if storage not in self._saved:
                self._saved.add(storage)
                self._current.saved += tensor.untyped_storage().nbytes() if storage else 0
            # An output would keep its own graph alive; a detached one shares memory and version with it.
            return tensor if tensor.is_leaf else tensor.detach(), tensor._version

    # ---- operations

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", None) or type(func).__name__
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
            if name in _GETTERS:
                return func(*args, **kwargs)
        if len(self._stack) == 1:
            return func(*args, **kwargs)
        if self._before is not None:
            return self._operation(func, name, args, kwargs)
        profiler = sys.getprofile()
        sys.setprofile(None)  # what happens inside an operation is no one's own code: not watching it halves the cost
        try:
            return self._operation(func, name, args, kwargs)
        finally:
            sys.setprofile(profiler)

    def _operation(self, func: Callable, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        scope = self._stack[-1]
        op = Op(func, name, scope, tuple([self._tree(a) for a in args]), self._tree(kwargs) if kwargs else kwargs)
        self._current, self.error = op, None  # if something has failed before, it was caught
        begun = time.perf_counter()
        try:
            output = func(*args, **kwargs)
        except BaseException as error:
            op.failed = True
            scope.children.append(op)
            self.error = (op, error)
            raise
        finally:
            self._current = scope
        op.seconds = time.perf_counter() - begun
        if self._note_output(op, output, args):
            scope.children.append(op)
            if self._stats is not None:
                self._note_stats((args, kwargs, output))
        return output

    def _note_output(self, op: Op, output: Any, args: tuple) -> bool:
        """Notes what an operation returned; says whether it is one that works on tensors at all."""
        if isinstance(output, torch.Tensor):
            if op.name[-1] == "_" and args and output is args[0]:  # in place: it may have another shape now
                self._known.pop(id(output), None)
            value = op.output = self._tree(output)
            if value.maker is None and not value.weight:
                value.maker = op
        elif isinstance(output, (tuple, list)):
            op.output = self._tree(output)
            made = op.outputs()
            for value in made:
                value.maker = value.maker or op
            if not made:
                return False
        elif op.name != "__setitem__":
            return False
        if op.name in VIEWS and args and isinstance(args[0], torch.Tensor) and output is not None:
            op.storages = _storage(args[0]), _storage(output if isinstance(output, torch.Tensor) else output[0])
        return True

    def _note_stats(self, tree: Any) -> None:
        """Measures what went into an operation and what came out of it, each tensor when it is first met."""
        if isinstance(tree, torch.Tensor):
            value = self.see(tree)
            if value.stats is None:
                value.stats = self._stats(tree)
        elif isinstance(tree, (tuple, list, dict)):
            for item in tree.values() if isinstance(tree, dict) else tree:
                self._note_stats(item)

    # ---- scopes

    def _profile_function(self) -> Callable:
        stack, kinds, before = self._stack, self._kinds, self._before
        enter, leave, classify, notes = self._enter, self._leave, self._classify, self.notes
        chained = before if callable(before) else None

        def profile(frame: FrameType, event: str, arg: Any) -> None:
            try:
                if event == "call":
                    kind = kinds.get(id(frame.f_code))
                    if kind is None:
                        kind = classify(frame.f_code)
                    if kind:
                        enter(frame, kind)
                elif event == "return" and stack[-1].frame is frame:
                    leave(frame, arg)
            except Exception as problem:  # must not become the model's: said below the trace
                notes.append(f"not recorded: {frame.f_code.co_qualname}: {type(problem).__name__}: {problem}")
            if chained is not None:
                chained(frame, event, arg)

        return profile

    def _classify(self, code: CodeType) -> int:
        """The kind of a code object that is met for the first time."""
        name, file = code.co_name, code.co_filename
        foreign = file.startswith(FOREIGN) and (file not in self._model.files or file.startswith(_TORCH))
        if code.co_flags & _GENERATOR or id(code) in SEE_THROUGH:
            kind = NO_SCOPE  # it runs in pieces, so that its operations count as those of the line that draws on it
        elif id(code) in MARKS:
            kind = SCOPE
        elif name.startswith("<") or (name.startswith("__") and name != "__call__"):
            kind = NO_SCOPE  # comprehensions and lambdas count as a part of the line they stand in
        elif foreign:
            kind = IF_FORWARD if name == "forward" else NO_SCOPE
        else:
            kind = SCOPE
        self._codes.append(code)
        self._kinds[id(code)] = kind
        return kind

    def _enter(self, frame: FrameType, kind: int) -> None:
        if kind == STOPS_HOOKS:
            self._give_way()
            return
        code, parent, values = frame.f_code, self._stack[-1], frame.f_locals
        owner = owner_of(code, values)
        outermost = parent is self._root
        if owner is None and (outermost or kind == IF_FORWARD):
            return
        path = parent.path if owner is None else self._model.path_of(owner, parent)
        if outermost and (path is None or torch._C._current_graph_task_id() >= 0):
            return  # not a part of this model, or made again by a checkpoint during a backward pass
        scope = Scope(code, parent)
        scope.frame, scope.path, scope.first_value = frame, path, len(self.values)
        if not outermost:
            scope.lasti = parent.frame.f_lasti
        if owner is not None:
            scope.owner, scope.training, scope.module = type(owner).__name__, owner.training, owner
        scope.function = _function_name(code, owner, parent)
        if outermost:
            self._begin_call(scope, values, owner)
        else:
            parent.children.append(scope)
        self._note_arguments(scope, values, owner)
        self._stack.append(scope)
        self._scopes.append(scope)
        self._current, self.error = scope, None
        scope.seconds = time.perf_counter()

    def _note_arguments(self, scope: Scope, values: dict[str, Any], owner: nn.Module | None) -> None:
        known = len(self.values)
        scope.arguments = arguments_of(scope.code, values, owner, self.see)
        if len(self.values) == known:
            return
        where = f"{scope.owner}.{scope.function}" if scope.owner else scope.function
        for argument in scope.arguments:
            for value in tensors_in(argument.info):
                if value.index >= known and not value.origin:
                    value.origin = f"argument {argument.name!r} of {where}"

    def _begin_call(self, scope: Scope, values: dict[str, Any], owner: nn.Module) -> None:
        self.calls.append(scope)
        self._saved = {_storage(tensor) for tensor, _, weight in self._model.tensors.values() if weight}
        if self._keep_inputs is not None:
            with torch._C.DisableTorchFunction():
                call = (owner, scope.function, *call_arguments(scope.code, values, owner))
                scope.replay = self._keep_inputs(call, self._met_before)

    def _give_way(self) -> None:
        """`torch.func` refuses to run while there are hooks for saved tensors."""
        if self._hooks is not None:
            self._stop_hooks()
            self.notes.append("bytes saved for backward are counted up to the first use of torch.func")

    def _leave(self, frame: FrameType, output: Any) -> None:
        scope = self._stack.pop()
        scope.seconds = time.perf_counter() - scope.seconds
        scope.last_line = frame.f_lineno
        self._current = self._stack[-1]
        if output is None and not ends_normally(frame):
            scope.failed = True
            if self.error is None:
                self.error = (scope, None)
        else:
            scope.output = describe(output, self.see)
            scope.frame = None
            self.error = None  # what failed inside was caught inside


def _function_name(code: CodeType, owner: nn.Module | None, parent: Scope) -> str:
    """`forward`; `Norm.forward` for that of a base class called by the module's own, or of an autograd function."""
    inherited = owner is not None and owner is parent.module
    inherited = inherited and code.co_name == parent.function and code is not parent.code
    if inherited or (owner is None and code.co_name == "forward"):
        return ".".join(code.co_qualname.split(".")[-2:])
    return code.co_name


def _unpack(kept: tuple[torch.Tensor, int]) -> torch.Tensor:
    """Raises RuntimeError where PyTorch would without hooks: they switch its own check off."""
    tensor, version = kept
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"{tuple(tensor.shape)} {tensor.dtype} is at version {tensor._version}, expected {version}"
        )
    return tensor


def _storage(tensor: torch.Tensor) -> int:
    """Which piece of memory a tensor lies in; 0 for tensors that have none of their own (sparse, subclasses)."""
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError, ValueError):
        return 0
