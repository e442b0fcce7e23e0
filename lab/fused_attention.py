"""A compiled attention for training on a CPU: the numbers of `model.attend`, several times as fast.

    ctx = model.context(tokens)
    ctx.fused = load()              # raises Unavailable, one line that says why, where it can't be had
    logits = model(tokens, ctx)     # `attend` uses it wherever it applies: see `Fused.takes`

The C++ beside this file is compiled once for this machine's instruction set, in a few seconds, and kept in `.cache/`.
It is a faster way to the same result: nothing needs it, and nothing but speed is lost without a compiler.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lab.compile import CompileError, compile_library

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-ffp-contract=fast", "-fno-math-errno",
         "-fno-trapping-math", "-w")  # fmt: skip
AVX512 = ("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
LEVELS = {  # instruction sets from slow to fast: what the compiler is told
    "plain": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": AVX512,
    "avx512_bf16": (*AVX512, "-mavx512bf16"),
}
DTYPES = (torch.float32, torch.bfloat16)
Unavailable = CompileError  # a RuntimeError


def load(level: str | None = None, say: Callable[[str], object] | None = None) -> "Fused":
    """The compiled attention for this machine, built first where that has not been done yet.

    level: one of LEVELS; None: the best that the processor has. `say` is called with one line before a build.
    Raises: Unavailable where there is no compiler or building fails; ValueError for a level that this processor lacks.
    """
    have = levels_here()
    level = have[-1] if level is None else level
    if level not in have:
        raise ValueError(f"level={level!r}: this processor has {have}; all there are: {list(LEVELS)}")
    _library(level, say)
    return Fused(level)


def levels_here() -> list[str]:
    """The instruction sets of LEVELS that this processor has, from slow to fast."""
    best = torch.backends.cpu.get_cpu_capability()  # the variable ATEN_CPU_CAPABILITY can lower it
    has = {
        "plain": True,
        "avx2": best in ("AVX2", "AVX512"),
        "avx512": best == "AVX512",
        "avx512_bf16": best == "AVX512" and torch.cpu._is_avx512_bf16_supported(),
    }
    return [level for level in LEVELS if has[level]]


_libraries: dict[str, ctypes.CDLL] = {}  # by level


def _library(level: str, say: Callable[[str], object] | None = None) -> ctypes.CDLL:
    if level not in _libraries:
        try:
            library = compile_library(SOURCE, FLAGS + LEVELS[level], say)
        except OSError as error:  # the cache can't be written, or the library can't be loaded
            raise Unavailable(f"{SOURCE.name} can't be compiled or loaded here: {error}") from error
        for function in (library.attention_forward, library.attention_backward):
            function.argtypes, function.restype = [ctypes.POINTER(_Problem)], ctypes.c_bool
        _libraries[level] = library
    return _libraries[level]


# ---------------------------------------------------------------- calling


class _View(ctypes.Structure):
    """As in the C++: a tensor (B, heads, T, channels) by address and strides."""

    _fields_ = [("data", ctypes.c_void_p), ("b", ctypes.c_int64), ("h", ctypes.c_int64), ("t", ctypes.c_int64)]


class _Problem(ctypes.Structure):
    """As in the C++."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("B", "H", "G", "T", "K", "V", "window", "bf16", "threads")),
        ("scale", ctypes.c_double),
        ("segments", ctypes.c_void_p),
        *((name, _View) for name in ("q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v")),
        ("lse", ctypes.c_void_p),
    ]


def _problem(q: Tensor, k: Tensor, v: Tensor, window: int, segments: Tensor | None, lse: Tensor, **others) -> _Problem:
    B, H, T, K = q.shape
    tensors = {"q": q, "k": k, "v": v, **others}
    return _Problem(
        B=B, H=H, G=k.shape[1], T=T, K=K, V=v.shape[3], window=window, bf16=q.dtype == torch.bfloat16,
        threads=torch.get_num_threads(), scale=K**-0.5, lse=lse.data_ptr(),
        segments=None if segments is None else segments.data_ptr(),
        **{name: _View(x.data_ptr(), *x.stride()[:3]) for name, x in tensors.items()},
    )  # fmt: skip


def _run(function: Callable, problem: _Problem) -> None:
    if not function(ctypes.byref(problem)):
        raise MemoryError("the compiled attention found no memory: make batch_size or max_seq_len smaller")


def _side_by_side(x: Tensor) -> Tensor:
    """x with its channels next to each other in memory, which is all that the C++ asks for."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _new(like: Tensor, heads: int, width: int) -> Tensor:
    """An empty (B, heads, T, width), laid out so that `transpose(1, 2).flatten(2)` copies nothing."""
    return like.new_empty(like.shape[0], like.shape[2], heads, width).transpose(1, 2)


@torch.library.custom_op("lab::attention", mutates_args=(), device_types="cpu")
def attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, segments: Tensor | None, level: str
) -> tuple[Tensor, Tensor]:
    """The result (B, H, T, V) and each row's log-sum-exp (B, H, T), to base 2, from which backward starts."""
    q, k, v = map(_side_by_side, (q, k, v))
    out, lse = _new(q, q.shape[1], v.shape[3]), q.new_empty(q.shape[:3], dtype=torch.float32)
    if q.numel():
        _run(_library(level).attention_forward, _problem(q, k, v, window, segments, lse, out=out))
    return out, lse


@attention.register_fake
def _(q, k, v, window, segments, level):
    return _new(q, q.shape[1], v.shape[3]), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("lab::attention_backward", mutates_args=(), device_types="cpu")
def attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int, segments: Tensor | None,
    level: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v."""
    grad_out, q, k, v, out = map(_side_by_side, (grad_out, q, k, v, out))
    grads = {f"grad_{name}": _new(x, *x.shape[1::2]) for name, x in (("q", q), ("k", k), ("v", v))}
    if q.numel():
        problem = _problem(q, k, v, window, segments, lse, out=out, grad_out=grad_out, **grads)
        _run(_library(level).attention_backward, problem)
    return tuple(grads.values())


@attention_backward.register_fake
def _(grad_out, q, k, v, out, lse, window, segments, level):
    return tuple(_new(x, *x.shape[1::2]) for x in (q, k, v))


def _keep(ctx, inputs, output) -> None:
    q, k, v, ctx.window, segments, ctx.level = inputs
    ctx.save_for_backward(q, k, v, segments, *output)


def _differentiate(ctx, grad_out, _):
    q, k, v, segments, out, lse = ctx.saved_tensors
    grad_out = grad_out.to(q.dtype)
    grads = attention_backward(grad_out, q, k, v, out, lse, ctx.window, segments, ctx.level)
    return *grads, None, None, None


attention.register_autograd(_differentiate, setup_context=_keep)


class Fused:
    """The compiled attention of one instruction set, to be put into `Context.fused`."""

    def __init__(self, level: str):
        self.level = level

    def __repr__(self) -> str:
        return f"Fused({self.level!r})"

    def takes(self, q: Tensor, k: Tensor, v: Tensor, ctx) -> bool:
        """Whether this can stand in for `model.attend`: a plain softmax over all keys of a full forward pass on a CPU.

        Decoding (`ctx.cache`), weights of another kind (`ctx.weigh`), ALiBi (`ctx.slopes`), other devices and numbers
        stay with PyTorch.
        """
        plain = ctx.cache is None and ctx.weigh is None and ctx.slopes is None
        return plain and q.shape[2] == k.shape[2] and all(x.is_cpu and x.dtype in DTYPES for x in (q, k, v))

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, window: int | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Causal attention: q (B, H, T, K), k (B, G, T, K), v (B, G, T, V) -> (B, H, T, V), in q's numbers.

        window: how many positions back a query looks, its own among them. segments: (B, T) integers; positions of
        different ones do not see each other. Under autocast its inputs are cast as those of a matrix product are.
        Raises: ValueError and TypeError for shapes and numbers that it can't take.
        """
        if torch.is_autocast_enabled("cpu"):
            q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
        _check(q, k, v, window, segments)
        T = q.shape[2]
        segments = None if segments is None else segments.to(torch.int64).contiguous()
        return attention(q, k, v, T if window is None else min(window, T), segments, self.level)[0]


def _check(q: Tensor, k: Tensor, v: Tensor, window: int | None, segments: Tensor | None) -> None:
    dtypes, shapes = [x.dtype for x in (q, k, v)], [tuple(x.shape) for x in (q, k, v)]
    if dtypes[0] not in DTYPES or len(set(dtypes)) > 1:
        raise TypeError(f"q, k, v are {dtypes}: the compiled attention takes float32 or bfloat16, one for all three")
    if not all(x.is_cpu for x in (q, k, v)):
        raise ValueError(f"q, k, v are on {[str(x.device) for x in (q, k, v)]}: the compiled attention is for the CPU")
    fits = all(len(shape) == 4 for shape in shapes) and shapes[1][:3] == shapes[2][:3]
    fits = fits and shapes[0][::2] == shapes[1][::2] and shapes[0][3] == shapes[1][3]
    if not fits or not shapes[1][1] or shapes[0][1] % shapes[1][1]:
        raise ValueError(
            f"q, k, v have shapes {shapes}: they must be (B, H, T, K), (B, G, T, K), (B, G, T, V), H a multiple of G"
        )
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1, a position itself; None: no limit")
    if segments is not None and tuple(segments.shape) != (shapes[0][0], shapes[0][2]):
        raise ValueError(f"segments has shape {tuple(segments.shape)}, not (B, T)={(shapes[0][0], shapes[0][2])}")
