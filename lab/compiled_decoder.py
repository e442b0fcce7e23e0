"""Decoding on a CPU by a compiled program: the same text as the model's own, many times sooner.

    decoder = CompiledDecoder(model, prompts)         # lists of ids; a copy of the weights as they are now
    for step in decoder.new_tokens(choose, generators, max_new_tokens=100, stop_id=2): ...

`inference.generate` uses it where it can (`compiled="auto"`). It knows the everyday architecture only, residual layers
of RMSNorm, attention and MLP; `why_not(model)` says what of a model it doesn't know. The arithmetic stands in
compiled_decoder.cpp. Nothing needs it: without a compiler the model itself writes, as it always can.
"""

from __future__ import annotations

import ctypes
import random
import re
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import NONLINEARITIES, PRE_NORM, SANDWICH
from lab.compile import CompileError, compile_library
from model import GPT, MLP, MQA, ResidualLayer, RMSNorm, rope_tables, sinusoid

if TYPE_CHECKING:
    import inference

SOURCE = Path(__file__).with_suffix(".cpp")
STEPS = 32  # tokens of each text per call: between two calls Ctrl-C is heard

Pointer = ctypes.c_void_p


class Norm(ctypes.Structure):
    _fields_ = [("scale", Pointer), ("shift", Pointer)]


class Matrix(ctypes.Structure):
    _fields_ = [("panels", Pointer), ("bias", Pointer)]


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, Norm) for name in ("attn_norm", "q_norm", "k_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm")),
        *((name, Matrix) for name in ("qkv", "out", "up", "down")),
        ("window", ctypes.c_int32),
    ]


SIZES = ("dim", "layers", "heads", "groups", "head_dim", "hidden", "vocab", "max_len")
SWITCHES = ("rope_pairs", "interleaved", "gated", "nonlinearity")


class Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in SIZES + SWITCHES),
        ("eps", ctypes.c_float),
        *((name, Pointer) for name in ("embed", "positions", "cos", "sin")),
        ("final_norm", Norm),
        ("head", Matrix),
        ("layer", ctypes.POINTER(Layer)),
    ]


class Choice(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("temperature", "top_p", "min_p")),
        ("top_k", ctypes.c_int32),
    ]


def library() -> ctypes.CDLL:
    """The compiled program. The first call on a machine takes some seconds. Raises CompileError."""
    found = _library()
    if isinstance(found, CompileError):
        raise found
    return found


@cache
def _library() -> ctypes.CDLL | CompileError:
    """Tried once in a process: a compiler that fails is not called again for each text."""
    try:
        lib = compile_library(SOURCE)
    except CompileError as error:
        return error
    lib.decoder_new.restype = Pointer
    lib.decoder_new.argtypes = (Pointer, ctypes.c_int)
    lib.decoder_free.argtypes = (Pointer,)
    lib.decoder_set.argtypes = (Pointer, ctypes.c_int, Pointer, ctypes.c_int)
    lib.decoder_step.argtypes = (Pointer,)
    lib.decoder_logits.argtypes = (Pointer, ctypes.c_int)
    lib.decoder_logits.restype = Pointer
    lib.decoder_length.argtypes = (Pointer, ctypes.c_int)
    lib.decoder_pick.argtypes = (Pointer, Pointer, Pointer, ctypes.c_double)
    lib.decoder_run.argtypes = (Pointer, ctypes.c_int, Pointer, Pointer, ctypes.c_int, Pointer)
    return lib


# ---------------------------------------------------------------- which models it knows

KNOWN = {GPT, ResidualLayer, MQA, MLP, RMSNorm, nn.Linear, nn.Embedding, nn.Dropout, nn.Identity}
KNOWN |= {nn.ModuleList, nn.Sequential}
WINDOW = re.compile(r"Attn\(window=(\w+|cyc\([\w,]*\))\)")  # a window is known, other arguments are not


def why_not(model: nn.Module) -> str:
    """What of this model the compiled program doesn't know, as a phrase; "" if it knows it all."""
    if type(model) is not GPT:
        return f"the model is a {type(model).__name__}, not a GPT"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    tensors = {(p.device.type, p.dtype) for p in model.parameters()}
    if tensors != {("cpu", torch.float32)}:
        return f"weights are on {', '.join(f'{device} in {dtype}' for device, dtype in sorted(tensors, key=str))}"
    cfg = model.cfg
    if cfg.positions == "alibi" or cfg.norm_type != "RMSNorm" or not cfg.norm_affine:
        return f"positions={cfg.positions!r}, norm_type={cfg.norm_type!r}, norm_affine={cfg.norm_affine}"
    if WINDOW.sub("Attn", cfg.architecture) not in (PRE_NORM, SANDWICH):
        return f"recipe={cfg.recipe!r}"
    for name, module in model.named_modules():
        if type(module) not in KNOWN and type(module).__name__ != "RecipeLayer":
            return f"{name} is a {type(module).__name__}"
        if _watched(module):
            return f"{name or 'the model'} has a hook, its logging is on, or a method of it was replaced"
    return "a trace is being made" if sys.getprofile() is not None else ""


def _watched(module: nn.Module) -> bool:
    replaced = [name for name, value in vars(module).items() if callable(value) and hasattr(type(module), name)]
    return bool(module._forward_hooks or module._forward_pre_hooks or replaced)


# ---------------------------------------------------------------- its copy of the weights


class Packed:
    """A model's weights as the compiled program reads them: `struct`, and the tensors that its pointers lead to."""

    @torch.no_grad()
    def __init__(self, model: GPT, panel: int):
        self.panel, self.kept, cfg = panel, [], model.cfg
        self.layers = (Layer * cfg.num_layers)(*(self._layer(block) for block in model.layers))
        cos, sin = rope_tables(torch.arange(cfg.max_seq_len), cfg) or (torch.zeros(1, 0),) * 2
        sizes = (cfg.dim, cfg.num_layers, cfg.num_q_heads, cfg.num_kv_heads, cfg.head_dim, cfg.mlp_hidden)
        switches = (cos.shape[-1], cfg.positions == "rope_interleaved", cfg.mlp_gated)
        tables = (token_vectors(model), added_by_position(model), cos, sin)
        head = model.head.weight if isinstance(model.head, nn.Linear) else model.head[1].weight @ model.head[0].weight
        self.struct = Model(
            *sizes, cfg.vocab_size, cfg.max_seq_len, *switches, NONLINEARITIES.index(cfg.mlp_nonlinearity),
            cfg.norm_eps, *(None if table is None else self._keep(table) for table in tables),
            self._norm(model.final_norm), self._matrix(head), self.layers,
        )  # fmt: skip

    def _layer(self, block: nn.Module) -> Layer:
        attn_norm, attn, attn_post_norm, mlp_norm, mlp, mlp_post_norm = layer_parts(block)
        norms = (attn_norm, attn.q_norm, attn.k_norm, attn_post_norm, mlp_norm, mlp_post_norm)
        ups = [mlp.Wup] if mlp.Wgate is None else [mlp.Wgate, mlp.Wup]
        matrices = ([attn.Wq, attn.Wk, attn.Wv], [attn.Wo], ups, [mlp.Wdown])
        return Layer(*map(self._norm, norms), *(self._linear(parts) for parts in matrices), attn.window or 0)

    def _norm(self, norm: nn.Module) -> Norm:
        if isinstance(norm, nn.Identity):
            return Norm(None, None)
        shift = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
        return Norm(self._keep(norm.weight), self._keep(shift))

    def _linear(self, parts: list[nn.Linear]) -> Matrix:
        """Several matrices with the same inputs as one."""
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        return self._matrix(torch.cat([part.weight for part in parts]), bias)

    def _matrix(self, weight: Tensor, bias: Tensor | None = None) -> Matrix:
        """weight (N, M) -> panels (N / panel, M, panel), the last one filled up with zeros."""
        rest = -len(weight) % self.panel
        panels = F.pad(weight, (0, 0, 0, rest)).view(-1, self.panel, weight.shape[1]).transpose(1, 2)
        return Matrix(self._keep(panels), None if bias is None else self._keep(F.pad(bias, (0, rest))))

    def _keep(self, tensor: Tensor) -> int:
        """The address of a copy that lives as long as this object."""
        self.kept.append(tensor.detach().clone(memory_format=torch.contiguous_format))
        return self.kept[-1].data_ptr()


def layer_parts(block: nn.Module) -> tuple[nn.Module, ...]:
    """Norm, attention and second norm, then the same of the MLP: of a ResidualLayer or of the recipe that equals it."""
    if isinstance(block, ResidualLayer):
        mlp = (block.mlp_norm, block.mlp, block.mlp_post_norm)
        return (block.attn_norm, block.attn, block.attn_post_norm, *mlp)
    if hasattr(block, "norm_4"):  # Norm->Attn->Norm->+->Norm->MLP->Norm->+
        return block.norm, block.attn, block.norm_2, block.norm_3, block.mlp, block.norm_4
    return block.norm, block.attn, nn.Identity(), block.norm_2, block.mlp, nn.Identity()


def token_vectors(model: GPT) -> Tensor:
    """What each token starts as, its position aside: (V, D)"""
    table = model.embed.weight if model.embed_up is None else model.embed_up(model.embed.weight)
    return table * model.cfg.dim**0.5 if model.cfg.scale_first_residual else table


def added_by_position(model: GPT) -> Tensor | None:
    """What is added for each position: (max_seq_len, D), or None."""
    if model.cfg.positions == "sinusoidal":
        return sinusoid(torch.arange(model.cfg.max_seq_len), model.cfg.dim)
    return None if model.position_embed is None else model.position_embed.weight


# ---------------------------------------------------------------- decoding


class CompiledDecoder:
    """A model's compiled copy and a cache for each of B prompts. Later changes of the model do not reach it.

    The prompts are split among as many threads as PyTorch uses. Raises CompileError where it can't be compiled,
    ValueError for a model that it doesn't know or tokens that the model can't take.
    """

    def __init__(self, model: GPT, prompts: list[list[int]]):
        if reason := why_not(model):
            raise ValueError(f"the compiled decoder can't be used: {reason}")
        for ids in prompts:
            model.check_tokens(torch.tensor([ids[-model.cfg.max_seq_len :]]))
        lib = library()
        self.packed = Packed(model, lib.panel_width())
        count = max(1, min(torch.get_num_threads(), len(prompts)))
        bounds = [i * len(prompts) // count for i in range(count + 1)]
        self.shares = [slice(a, b) for a, b in zip(bounds, bounds[1:])]  # which prompts are whose
        self.groups = [_Group(lib, self.packed, prompts[share]) for share in self.shares]

    def logits(self) -> Tensor:
        """What the model says follows each text: (B, V). Chooses nothing yet."""
        return torch.cat([group.logits() for group in self.groups])

    def first_logits(self) -> Tensor:
        """The same for the first text alone: (V,)."""
        return self.groups[0].logits()[0]

    def pick(self, logits: Tensor, choose: inference.Choice, draw: float) -> int:
        """What `choose.pick` picks from logits (V,) by a random number in [0, 1), as the compiled program does it."""
        group = self.groups[0]
        logits = F.pad(logits.float(), (0, -len(logits) % self.packed.panel)).contiguous()  # it reads whole panels
        return group.lib.decoder_pick(group.pointer, logits.data_ptr(), _choice(choose), draw)

    def new_tokens(
        self,
        choose: inference.Choice,
        generators: list[random.Random],
        *,
        max_new_tokens: int,
        stop_id: int | None = None,
        at_once: int = STEPS,
    ) -> Iterator[list[int | None]]:
        """As `inference.new_tokens`: yields, step after step, the new id of each prompt, None from its end on.

        at_once: how many steps are computed before the first of them is yielded; a stream wants 1.
        """
        with ThreadPoolExecutor(len(self.groups)) as pool:
            for done in range(0, max_new_tokens, at_once):
                steps = min(at_once, max_new_tokens - done)
                draws = [[generator.random() for _ in range(steps)] for generator in generators]
                calls = [partial(g.run, steps, draws[s], choose, stop_id) for g, s in zip(self.groups, self.shares)]
                parts = [calls[0]()] if len(calls) == 1 else list(pool.map(lambda call: call(), calls))
                self._check_finite()
                for step in zip(*parts):
                    ids = [None if i < 0 else i for part in step for i in part]
                    if all(i is None for i in ids):
                        return
                    yield ids

    def _check_finite(self) -> None:
        from inference import non_finite_logits

        for group, share in zip(self.groups, self.shares):
            if group.bad >= 0:
                row = group.bad
                raise non_finite_logits(group.logits_of(row), share.start + row, group.length(row))


class _Group:
    """The texts of one thread."""

    def __init__(self, lib: ctypes.CDLL, packed: Packed, prompts: list[list[int]]):
        self.lib, self.packed, self.count = lib, packed, len(prompts)
        self.bad = -1  # the text whose logits were found to be not finite
        self.pointer = lib.decoder_new(ctypes.addressof(packed.struct), len(prompts))
        weakref.finalize(self, lib.decoder_free, self.pointer)
        for i, ids in enumerate(prompts):
            lib.decoder_set(self.pointer, i, (ctypes.c_int32 * len(ids))(*ids), len(ids))

    def run(self, steps: int, draws: list[list[float]], choose: inference.Choice, stop_id: int | None) -> list:
        """The ids of `steps` steps, each a list with one for every text, -1 where it has ended."""
        ids = (ctypes.c_int32 * (steps * self.count))()
        numbers = (ctypes.c_double * len(ids))(*(number for step in zip(*draws) for number in step))
        stop_id = -1 if stop_id is None else stop_id
        self.bad = self.lib.decoder_run(self.pointer, steps, numbers, _choice(choose), stop_id, ids)
        return [ids[start : start + self.count] for start in range(0, len(ids), self.count)]

    def logits(self) -> Tensor:
        self.lib.decoder_step(self.pointer)
        return torch.stack([self.logits_of(i) for i in range(self.count)])

    def logits_of(self, text: int) -> Tensor:
        vocab = self.packed.struct.vocab
        numbers = (ctypes.c_float * vocab).from_address(self.lib.decoder_logits(self.pointer, text))
        return torch.frombuffer(numbers, dtype=torch.float32).clone()

    def length(self, text: int) -> int:
        """Tokens in the window of a text."""
        return self.lib.decoder_length(self.pointer, text)


def _choice(choose: inference.Choice) -> ctypes.Structure:
    top_p = choose.top_p if choose.top_p is not None and choose.top_p < 1 else 0.0
    return ctypes.byref(Choice(choose.temperature, top_p, choose.min_p or 0.0, choose.top_k or 0))
