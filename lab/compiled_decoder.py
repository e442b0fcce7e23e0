"""Decoding on a CPU by a compiled program: the same text as the model's own, many times sooner.

    decoder = CompiledDecoder(model, prompts)         # lists of ids; a copy of the weights as they are now
    for step in decoder.new_tokens(choose, generators, max_new_tokens=100, stop_id=2): ...

`inference.generate` uses it where it can (`compiled="auto"`). It knows the everyday architecture only, residual layers
of norm, attention and MLP, with short convolutions in front of the two or without; `why_not(model)` says what of a
model it doesn't know. The arithmetic stands in
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
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import NONLINEARITIES, ModelConfig
from lab.compile import CompileError, compile_library
from model import (
    GPT,
    MLP,
    MQA,
    CappedLinear,
    LayerNorm,
    Norm,
    ResidualLayer,
    RMSNorm,
    alibi_slopes,
    rope_tables,
    sinusoid,
)

if TYPE_CHECKING:
    import inference

SOURCE = Path(__file__).with_suffix(".cpp")
STEPS = 32  # tokens of each text per call: between two calls Ctrl-C is heard

Pointer = ctypes.c_void_p


class NormStruct(ctypes.Structure):
    _fields_ = [("scale", Pointer), ("shift", Pointer)]


class MatrixStruct(ctypes.Structure):
    _fields_ = [("panels", Pointer), ("bias", Pointer)]


class ConvStruct(ctypes.Structure):
    _fields_ = [("taps", Pointer), ("bias", Pointer), ("width", ctypes.c_int32)]


NORMS = ("attn_norm", "q_norm", "k_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm")


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, NormStruct) for name in NORMS),
        *((name, ConvStruct) for name in ("attn_conv", "mlp_conv")),
        *((name, MatrixStruct) for name in ("qkv", "out", "up", "down")),
        ("value_mix", Pointer),
        ("window", ctypes.c_int32),
    ]


SIZES = ("dim", "layers", "heads", "groups", "head_dim", "hidden", "vocab", "max_len", "head_inputs")
SWITCHES = ("rope_pairs", "interleaved", "gated", "nonlinearity", "centred", "conv_width")


class Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in SIZES + SWITCHES),
        *((name, ctypes.c_float) for name in ("eps", "logit_cap")),
        *((name, Pointer) for name in ("embed", "positions", "cos", "sin", "slopes")),
        ("final_norm", NormStruct),
        *((name, MatrixStruct) for name in ("narrow", "head")),
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

KNOWN = {GPT, ResidualLayer, MQA, MLP, RMSNorm, LayerNorm, nn.Linear, CappedLinear, nn.Embedding, nn.Dropout}
KNOWN |= {nn.Identity, nn.ModuleList, nn.Sequential}
ARGUMENTS = r"(\(([^()]|\([^()]*\))*\))?"  # in a recipe; what they say is read off the modules
RECIPE = re.compile(
    rf"Norm->(ShortConv{ARGUMENTS}->)?(ValueResidual)?Attn{ARGUMENTS}->(Norm->)?\+->"
    rf"Norm->(ShortConv{ARGUMENTS}->)?MLP->(Norm->)?\+"
)


def known_types(cfg: ModelConfig) -> set[type]:
    """The modules that it knows. The catalogue of blocks is imported only where the model has something of it."""
    if not cfg.recipe and cfg.attn_block == "MQA":
        return KNOWN
    from blocks.attention import ValueResidualAttn
    from blocks.convolution import CausalConv, ShortConv
    from blocks.recipe_layer import RecipeLayer

    return KNOWN | {RecipeLayer, ShortConv, CausalConv, ValueResidualAttn}


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
    if cfg.norm_type not in ("RMSNorm", "LayerNorm"):
        return f"norm_type={cfg.norm_type!r}"
    if not RECIPE.fullmatch(cfg.architecture):
        return f"recipe={cfg.recipe!r}"
    known = known_types(cfg)
    for name, module in model.named_modules():
        if type(module) not in known:
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
        cfg = model.cfg
        self.panel, self.dim, self.kept = panel, cfg.dim, []
        self.layers = (Layer * cfg.num_layers)(*(self._layer(block, cfg) for block in model.layers))
        cos, sin = rope_tables(torch.arange(cfg.max_seq_len), cfg) or (torch.zeros(1, 0),) * 2
        sizes = (cfg.dim, cfg.num_layers, cfg.num_q_heads, cfg.num_kv_heads, cfg.head_dim, cfg.mlp_hidden)
        width = max(conv.width for layer in self.layers for conv in (layer.attn_conv, layer.mlp_conv))
        switches = (cfg.mlp_gated, NONLINEARITIES.index(cfg.mlp_nonlinearity), cfg.norm_type == "LayerNorm", width)
        slopes = alibi_slopes(cfg.num_q_heads) if cfg.positions == "alibi" else None
        head = model.readout
        narrow = MatrixStruct(None, None) if model.head is head else self._linear([model.head[0]])
        self.struct = Model(
            *sizes, cfg.vocab_size, cfg.max_seq_len, head.in_features,
            cos.shape[-1], cfg.positions == "rope_interleaved", *switches, cfg.norm_eps, cfg.logit_cap or 0,
            *map(self._keep, (token_vectors(model), added_by_position(model), cos, sin, slopes)),
            self._norm(model.final_norm), narrow, self._linear([head]), self.layers,
        )  # fmt: skip

    def _layer(self, block: nn.Module, cfg: ModelConfig) -> Layer:
        first, second = layer_halves(block)
        attn, mlp = first.block, second.block
        norms = (first.norm, attn.q_norm, attn.k_norm, first.post_norm, second.norm, second.post_norm)
        convs = (self._conv(half.conv, cfg) for half in (first, second))
        ups = [mlp.Wup] if mlp.Wgate is None else [mlp.Wgate, mlp.Wup]
        matrices = map(self._linear, ([attn.Wq, attn.Wk, attn.Wv], [attn.Wo], ups, [mlp.Wdown]))
        mix = self._keep(getattr(attn, "mix", None))  # of ValueResidualAttn
        return Layer(*map(self._norm, norms), *convs, *matrices, mix, attn.window or 0)

    def _norm(self, norm: Norm | nn.Identity) -> NormStruct:
        if isinstance(norm, nn.Identity):
            return NormStruct(None, None)
        return NormStruct(*map(self._keep, scale_and_shift(norm, self.dim)))

    def _conv(self, conv: nn.Module | None, cfg: ModelConfig) -> ConvStruct:
        if conv is None:
            return ConvStruct(None, None, 0)
        taps, bias = taps_and_bias(conv)
        taps = taps[: cfg.max_seq_len]  # no token lies further back
        return ConvStruct(self._keep(taps), self._keep(bias), len(taps))

    def _linear(self, parts: list[nn.Linear]) -> MatrixStruct:
        """Several matrices with the same inputs as one."""
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        return self._matrix(torch.cat([part.weight for part in parts]), bias)

    def _matrix(self, weight: Tensor, bias: Tensor | None = None) -> MatrixStruct:
        """weight (N, M) -> panels (N / panel, M, panel), the last one filled up with zeros."""
        rest = -len(weight) % self.panel
        panels = F.pad(weight, (0, 0, 0, rest)).view(-1, self.panel, weight.shape[1]).transpose(1, 2)
        return MatrixStruct(self._keep(panels), None if bias is None else self._keep(F.pad(bias, (0, rest))))

    def _keep(self, tensor: Tensor | None) -> int | None:
        """The address of a copy that lives as long as this object; null for None."""
        if tensor is None:
            return None
        self.kept.append(tensor.detach().clone(memory_format=torch.contiguous_format))
        return self.kept[-1].data_ptr()


@dataclass
class Half:
    """One of a layer's two sums: x + post_norm(block(conv(norm(x))))."""

    norm: Norm
    conv: nn.Module | None  # a ShortConv
    block: MQA | MLP
    post_norm: Norm | nn.Identity


def layer_halves(layer: nn.Module) -> tuple[Half, Half]:
    """Attention's half and the MLP's: of a ResidualLayer, or of a recipe that `why_not` lets through."""
    if isinstance(layer, ResidualLayer):
        attn = Half(layer.attn_norm, None, layer.attn, layer.attn_post_norm)
        return attn, Half(layer.mlp_norm, None, layer.mlp, layer.mlp_post_norm)
    units = [getattr(layer, move.turns[0]) if move.turns else None for move in layer.lanes[0]]  # "+" has none
    plus = units.index(None)
    return _half(*units[:plus]), _half(*units[plus + 1 : -1])


def _half(norm: nn.Module, *units: nn.Module) -> Half:
    convs, rest = (units[:1], units[1:]) if hasattr(units[0], "conv") else ((None,), units)
    return Half(norm, *convs, *rest, *([nn.Identity()] if len(rest) == 1 else []))


def scale_and_shift(norm: Norm, dim: int) -> tuple[Tensor, Tensor]:
    """What a norm over D channels multiplies and adds, ones and zeros where it has learned nothing: each (D,)"""
    scale = torch.ones(dim) if norm.weight is None else norm.weight
    return scale, torch.zeros_like(scale) if norm.bias is None else norm.bias


def taps_and_bias(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """A ShortConv's weights, (width, D), row k for the token k steps back, and its bias (D,) or zeros."""
    taps = conv.conv.weight[:, 0].flip(-1).T.clone()
    taps[0] += conv.residual  # x itself
    return taps, torch.zeros_like(taps[0]) if conv.conv.bias is None else conv.conv.bias


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
