"""A small GPT, to be read from top to bottom: norms, positions, attention, MLP, residual layer, the whole model.

Dimension key, used in every shape comment:
    B  batch: rows processed side by side          T  query length: tokens in a row
    S  key length: tokens that can be looked at    D  dim: width of the residual stream
    H  query heads      G  key/value heads         K  head_dim: width of one head
    F  MLP hidden width                            V  vocabulary size

Every block takes (B, T, D) to (B, T, D). What concerns the whole batch (positions, masks, decode state) travels beside
x in a `Context`; nothing is kept on a module between calls.
"""

import difflib
import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from recipe import Add, Branches, Group, Lane, Layer, RecipeError, Set, Step, Tap, Unit, at_depth, parse
from tools import LoggingModule, log_io, see_through

LAYERS: dict[str, type] = {}  # every registered block by name


def layer(name: str) -> Callable[[type], type]:
    """Registers a block under `name`. Running the same notebook cell again replaces the block."""

    def register(cls: type) -> type:
        LAYERS[name] = cls
        return cls

    return register


def find_block(name: str) -> type:
    """The class registered under `name`, here or in `blocks/`. Raises ValueError with the nearest name."""
    if name not in LAYERS:
        importlib.import_module("blocks")  # registers every block of the catalogue
    if name in LAYERS:
        return LAYERS[name]
    close = difflib.get_close_matches(name, LAYERS, n=1)
    raise ValueError(
        f"unknown block {name!r}; {f'did you mean {close[0]!r}?' if close else f'there are {sorted(LAYERS)}'} "
        f'Your own block is registered by @layer("{name}") above its class: run that cell or import that file first'
    )


# ---------------------------------------------------------------- context: what a whole forward pass shares


@dataclass
class Context:
    """What all blocks of one forward pass share, and, while decoding, what is kept from one call to the next.

    The mask is a description, not a matrix: position i may look at position j if j <= i, and, where `segments` is
    given, if both lie in the same segment (document), and, where `window` is given, if i - j < window. `allowed` turns
    it into booleans for the rows asked for, `bias` into numbers to add to the scores. A block changes what is its own
    (`window`, `weigh`) in a copy: see `MQA.view`.
    """

    positions: Tensor  # (T,) or (B, T) int64: each token's place in its row, from 0
    rope: tuple[Tensor, Tensor] | None = None  # cos and sin, each (T, R/2) or (B, T, R/2): see rope_tables
    slopes: Tensor | None = None  # ALiBi's loss per step of distance, one for each of H heads; None: not used
    window: int | None = None  # how many positions back attention reaches, its own among them; None: all
    weigh: Callable[[Tensor, Tensor], Tensor] | None = None  # (scores, bias) -> weights; None: softmax of their sum
    segments: Tensor | None = None  # (B, T) int64: document number of each token of a packed row
    cache: dict | None = None  # decode state by slot; None: nothing is kept
    seen: Tensor | None = None  # (B,) int64: tokens of each row in the cache
    span: int = 0  # the largest of `seen`, as a plain number
    aux: dict = field(default_factory=dict)  # auxiliary losses by (slot, name)
    taps: dict = field(default_factory=dict)  # what a recipe kept with `@name` in this forward pass
    tokens: Tensor | None = None  # (B, T) int64: what the model was called with
    predict: Callable[[Tensor], Tensor] | None = None  # the model's final norm and head: (B, T, D) -> (B, T, V)
    memory: Tensor | None = None  # what cross-attention looks at: S vectors of width D for each row
    slot: str = ""  # whose turn it is; set by the stack, so that shared weights keep separate states

    def at(self, slot) -> "Context":
        """The same context as seen from one place in the stack; state and losses stay common to all places."""
        return replace(self, slot=f"{self.slot}.{slot}" if self.slot else str(slot))

    def reach(self, start: int, stop: int, num_keys: int) -> tuple[int, int]:
        """The stretch of keys, first..last-1, outside of which queries start..stop-1 look at nothing."""
        if self.cache is not None:  # rows stand at different positions
            return 0, num_keys
        return 0 if self.window is None else max(0, start + 1 - self.window), stop

    def allowed(self, start: int, stop: int, last: int, first: int = 0) -> Tensor:
        """Which keys first..last-1 queries start..stop-1 may look at: bool (stop-start, S) or (B, 1, stop-start, S)."""
        queries = self.positions[..., start:stop, None]
        keys = torch.arange(first, last, device=queries.device)
        mask = keys <= queries  # (C, S) or (B, C, S), with C = stop - start
        if self.window is not None:
            mask = mask & (keys > queries - self.window)
        if self.segments is not None:
            mask = mask & (self.segments[:, start:stop, None] == self.segments[:, None, first:last])
        return mask[:, None] if mask.ndim == 3 else mask

    def bias(self, start: int, stop: int, last: int, first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """What is added to the scores: -inf where `allowed` says no, else 0, or ALiBi's -slope * distance.

        Shaped as `allowed`, or, with slopes, (1, H, stop-start, S) or (B, H, stop-start, S).
        """
        mask = self.allowed(start, stop, last, first)
        bias = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)
        if self.slopes is None:
            return bias
        distances = self.positions[..., start:stop, None] - torch.arange(first, last, device=bias.device)
        return bias - (self.slopes[:, None, None] * distances.view(-1, 1, *bias.shape[-2:])).to(dtype)

    def rewind(self, lengths: Tensor) -> None:
        """Keeps the first lengths[b] tokens of row b in the cache; what stood behind them will be overwritten."""
        self.seen, self.span = lengths.to(self.seen), int(lengths.max())


def make_context(cfg: ModelConfig, x: Tensor, *, segments: Tensor | None = None) -> Context:
    """The context of a plain forward pass over x, tokens (B, T) or activations (B, T, D)."""
    positions = torch.arange(x.shape[1], device=x.device)
    slopes = alibi_slopes(cfg.num_q_heads, x.device) if cfg.positions == "alibi" else None
    return Context(positions, rope=rope_tables(positions, cfg), slopes=slopes, segments=segments)


# ---------------------------------------------------------------- norms


class Norm(LoggingModule):
    """What the norms share: an optional learned scale `weight` and shift `bias` for each of the D channels."""

    def __init__(self, dim: int, *, eps: float = 1e-5, affine: bool = True, bias: bool = False):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None


class RMSNorm(Norm):
    """y = x / sqrt(mean(x^2) + eps) * w: keeps a vector's direction and sets its length to about sqrt(D).

    Source: Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4. Deviates by an optional shift after the scale.
    """

    @log_io
    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), where C is D, or K within a head"""
        weight = None if self.weight is None else self.weight.to(x.dtype)
        y = F.rms_norm(x, x.shape[-1:], weight, self.eps)
        return y if self.bias is None else y + self.bias


class LayerNorm(Norm):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * w + b. Source: Ba, Kiros & Hinton 2016, arXiv 1607.06450, eq. 4."""

    @log_io
    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class CosineNorm(Norm):
    """y = x / max(|x|, eps) * w + b: length 1, so that products of two such vectors are cosines.

    Source: Luo et al. 2017, arXiv 1702.05870, eq. 2. With w = 1 its output is sqrt(D) times shorter than RMSNorm's.
    """

    @log_io
    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        y = F.normalize(x, dim=-1, eps=self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


class DyT(Norm):
    """y = tanh(a x) * w + b, a one learned number: squashes what is large as a norm does, each channel by itself.

    Source: Zhu et al. 2025, arXiv 2503.10622, section 4, with their starting value a = 0.5. `eps` is not used.
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, affine: bool = True, bias: bool = False):
        super().__init__(dim, eps=eps, affine=affine, bias=bias)
        self.alpha = nn.Parameter(torch.tensor(0.5))

    @log_io
    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape"""
        y = torch.tanh(self.alpha * x)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


class NoNorm(Norm):
    """y = x. Learns nothing, whatever `affine` and `bias` say."""

    def __init__(self, dim: int, *, eps: float = 1e-5, affine: bool = True, bias: bool = False):
        super().__init__(dim, affine=False)

    @log_io
    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape"""
        return x


NORMS = {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm, "CosineNorm": CosineNorm, "DyT": DyT, "none": NoNorm}


def make_norm(cfg: ModelConfig, name: str = "Norm", **own) -> LoggingModule:
    """The norm of that name over D channels, `Norm` being the config's; `own` wins over the config's settings."""
    settings = {"eps": cfg.norm_eps, "affine": cfg.norm_affine, "bias": cfg.norm_bias} | own
    return NORMS[cfg.norm_type if name == "Norm" else name](cfg.dim, **settings)


# ---------------------------------------------------------------- positions


def rope_tables(positions: Tensor, cfg: ModelConfig) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines of RoPE's angles: positions (...,) -> two of (..., R/2) fp32; None where RoPE is not used.

    Pair i of the first R channels of a head turns by position * theta^(-2i/R): the first pairs fast, the last ones
    slowly. R is the config's `rope_dim`, or the whole head.
    """
    if not cfg.positions.startswith("rope"):
        return None
    width = cfg.rope_dim or cfg.head_dim
    pairs = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * cfg.rope_theta ** (-pairs / width)
    return angles.cos(), angles.sin()


@log_io
def rotate(x: Tensor, rope: tuple[Tensor, Tensor], interleaved: bool = False) -> Tensor:
    """Turns each pair of channels (i, i + R/2) of x by its position's angle: (B, T, ..., K) -> (B, T, ..., K).

    The product of two such vectors depends on their positions through the difference alone. `interleaved` pairs
    neighbours (2i, 2i + 1), as the paper and GPT-J do; halves are what Llama's published code pairs. Channels from R on
    stay as they are (partial RoPE: Black et al. 2022, arXiv 2204.06745).
    Source: Su et al. 2021, arXiv 2104.09864, eq. 34; real-valued, so that it runs on every device.
    """
    R = 2 * rope[0].shape[-1]
    x, rest = (x, None) if x.shape[-1] == R else (x[..., :R], x[..., R:])
    cos, sin = (table[..., None, :].to(x.dtype) for table in rope)  # (T, 1, R/2) or (B, T, 1, R/2)
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        x = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = x.chunk(2, dim=-1)  # each (B, T, H, R/2), or (B, T, G, R/2) for keys
        x = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return x if rest is None else torch.cat((x, rest), dim=-1)


def alibi_slopes(heads: int, device: torch.device | None = None) -> Tensor:
    """What each head loses of its score per step of distance: (H,) fp32, falling geometrically from head to head.

    Source: Press, Smith & Lewis 2021, arXiv 2108.12409, section 3; a number of heads that is no power of two as in
    their published code: the slopes of the next smaller power, then every other one of the next larger.
    """
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]
    return torch.tensor(slopes, device=device)


def sinusoid(positions: Tensor, dim: int) -> Tensor:
    """Fixed position vectors: positions (...,) -> (..., D), sines then cosines of falling frequency.

    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.5, with sines and cosines in halves, not interleaved.
    """
    pairs = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * 10_000.0 ** (-pairs / dim)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


# ---------------------------------------------------------------- attention

CHUNK = 128  # query rows per piece of attention on a CPU


@log_io
def attend(q: Tensor, k: Tensor, v: Tensor, ctx: Context) -> Tensor:
    """softmax(q k^T / sqrt(K) + bias) v, where all masks meet: q (B, H, T, K), k and v (B, G, S, K) -> (B, H, T, K).

    Query head h uses key/value head h // (H/G); values, and so the result, may be of another width than keys. Three
    ways to the same numbers: PyTorch's fused kernel with its own causal mask where that is fast, the fused kernel with
    an explicit mask (while decoding; for windows, segments and ALiBi), and chunks, for long rows on a CPU and for
    weights that are no plain softmax (`ctx.weigh`).
    Source: Vaswani et al. 2017, arXiv 1706.03762, eq. 1; grouped heads: Ainslie et al. 2023, arXiv 2305.13245.
    """
    decoding, T, S = ctx.cache is not None, q.shape[2], k.shape[2]
    if ctx.weigh is not None or (not decoding and q.device.type == "cpu" and T > CHUNK):
        return attend_in_chunks(q, k, v, ctx)
    grouped, windowed = q.shape[1] != k.shape[1], ctx.window is not None and ctx.window < S
    if decoding or windowed or ctx.segments is not None or ctx.slopes is not None:
        mask = ctx.allowed(0, T, S) if ctx.slopes is None else ctx.bias(0, T, S, dtype=q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


@log_io
def attend_in_chunks(q: Tensor, k: Tensor, v: Tensor, ctx: Context) -> Tensor:
    """The same as `attend`, by pieces of CHUNK query rows: shapes as there.

    A piece looks only at the keys from its first row's window up to its own last row, so that without a window almost
    half of the products are never made, and the query heads of one group become rows of a single matrix product. On a
    CPU this outruns the fused kernel's backward.
    """
    B, H, T, K = q.shape
    G = k.shape[1]
    q = (q * K**-0.5).reshape(B, G, H // G, T, K)
    pieces = []
    for start in range(0, T, CHUNK):
        stop = min(start + CHUNK, T)
        first, last = ctx.reach(start, stop, k.shape[2])
        rows = q[:, :, :, start:stop].reshape(B, G, -1, K)  # (B, G, H/G * C, K), with C = stop - start
        scores = rows @ k[:, :, first:last].transpose(-1, -2)  # (B, G, H/G * C, S), with S = last - first
        bias = ctx.bias(start, stop, last, first, scores.dtype)  # (C, S) or (B, 1, C, S); adding beats filling
        if bias.ndim > 2:
            bias = bias.unflatten(-3, (G, H // G) if bias.shape[-3] == H else (1, 1))
        scores = scores.view(B, G, H // G, stop - start, last - first)
        weights = (scores + bias).softmax(dim=-1) if ctx.weigh is None else ctx.weigh(scores, bias)
        weights = weights.to(v.dtype).view(B, G, -1, last - first)
        pieces.append((weights @ v[:, :, first:last]).view(B, G, H // G, stop - start, -1))
    return torch.cat(pieces, dim=3).reshape(B, H, T, -1)


@layer("MQA")
class MQA(LoggingModule):
    """Causal self-attention whose H query heads share G key/value heads: each position gathers from those before it.

    G = H is multi-head attention, G = 1 multi-query attention (Shazeer 2019, arXiv 1911.02150), between them
    grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245). With `qk_norm`, queries and keys are RMS-normalised
    per head before RoPE (Henry et al. 2020, arXiv 2010.04245; as in Qwen3). With `window=n`, a position sees itself and
    the n - 1 before it (Beltagy et al. 2020, arXiv 2004.05150, section 3.1). `bias` adds one to all four matrices.
    Decode state: keys and values of the tokens seen, 2 x G x K numbers per token (a window does not shorten it).

    Variants override a step: `project`, `view` (mask and weights), `finish` (before Wo). See blocks/attention.py.
    """

    causal, decodes = True, True
    last = "Wo"  # the matrix that writes to the residual stream: it starts at zero

    def __init__(self, cfg: ModelConfig, *, window: int | None = None, bias: bool = False):
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"window={window} must be at least 1, a position itself; None: no limit")
        self.cfg, self.window = cfg, window
        H, G, K = cfg.num_q_heads, cfg.num_kv_heads, cfg.head_dim
        self.Wq = nn.Linear(cfg.dim, H * K, bias=bias)
        self.Wk = nn.Linear(cfg.dim, G * K, bias=bias)
        self.Wv = nn.Linear(cfg.dim, G * K, bias=bias)
        self.Wo = nn.Linear(H * K, cfg.dim, bias=bias)
        self.q_norm = RMSNorm(K, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(K, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        ctx = self.view(ctx)
        q, k, v = self.project(x, ctx)
        if ctx.cache is not None:
            k, v = self.remember(k, v, ctx)  # (B, G, S, K)
        out = attend(q, k, v, ctx)  # (B, H, T, K)
        out = self.finish(out, x)
        return self.Wo(out.transpose(1, 2).flatten(2))  # (B, T, D)

    def view(self, ctx: Context) -> Context:
        """The context as this block sees it: with its window, and in variants with a `weigh` of its own."""
        return ctx if self.window is None else replace(ctx, window=self.window)

    def finish(self, out: Tensor, x: Tensor) -> Tensor:
        """Nothing here: what variants do before Wo. out is (B, H, T, K), x the block's input (B, T, D)."""
        return out

    @log_io
    def project(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, heads first: (B, T, D) -> (B, H, T, K), (B, G, T, K), (B, G, T, K)"""
        q = self.q_norm(self.Wq(x).unflatten(-1, (-1, self.cfg.head_dim)))  # (B, T, H, K)
        k = self.k_norm(self.Wk(x).unflatten(-1, (-1, self.cfg.head_dim)))  # (B, T, G, K)
        v = self.Wv(x).unflatten(-1, (-1, self.cfg.head_dim))  # (B, T, G, K)
        if ctx.rope is not None:
            interleaved = self.cfg.positions == "rope_interleaved"
            q, k = rotate(q, ctx.rope, interleaved), rotate(k, ctx.rope, interleaved)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    @log_io
    def remember(self, k: Tensor, v: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """Writes new keys and values (B, G, T, K) into the cache at their positions; returns all, (B, G, S, K)."""
        B, G, T, K = k.shape
        if ctx.slot not in ctx.cache:
            ctx.cache[ctx.slot] = k.new_zeros(2, B, G, self.cfg.max_seq_len, K)
        state = ctx.cache[ctx.slot]
        rows = torch.arange(B, device=k.device)[:, None]  # (B, 1), beside positions (B, T)
        state[0, rows, :, ctx.positions] = k.transpose(1, 2)
        state[1, rows, :, ctx.positions] = v.transpose(1, 2)
        return state[0, :, :, : ctx.span + T], state[1, :, :, : ctx.span + T]


# ---------------------------------------------------------------- MLP


def relu2(x: Tensor) -> Tensor:
    """max(0, x)^2. Source: So et al. 2021, arXiv 2109.08668, section 3.2."""
    return F.relu(x).square()


NONLINEARITIES = {
    "silu": F.silu, "gelu": F.gelu, "relu": F.relu, "relu2": relu2, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
}  # fmt: skip


@layer("MLP")
class MLP(LoggingModule):
    """Wdown(f(Wgate x) * Wup x), or Wdown(f(Wup x)) without the gate: each position is worked on by itself.

    Source: gated: Shazeer 2020, arXiv 2002.05202, eq. 6; plain: Vaswani et al. 2017, arXiv 1706.03762, eq. 2.
    """

    causal, decodes = True, True
    last = "Wdown"

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.Wgate = nn.Linear(cfg.dim, cfg.mlp_hidden, bias=cfg.mlp_bias) if cfg.mlp_gated else None
        self.Wup = nn.Linear(cfg.dim, cfg.mlp_hidden, bias=cfg.mlp_bias)
        self.Wdown = nn.Linear(cfg.mlp_hidden, cfg.dim, bias=cfg.mlp_bias)
        self.nonlinearity = NONLINEARITIES[cfg.mlp_nonlinearity]

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        hidden = self.Wup(x)  # (B, T, F)
        if self.Wgate is None:
            hidden = self.nonlinearity(hidden)
        else:
            hidden = self.nonlinearity(self.Wgate(x)) * hidden
        return self.Wdown(hidden)  # (B, T, D)


# ---------------------------------------------------------------- residual layer


@layer("ResidualLayer")
class ResidualLayer(LoggingModule):
    """x + attention(norm(x)), then x + MLP(norm(x)): each block reads the residual stream and adds what it found.

    With `post_norm`, what a block returns is normalised once more before it is added (sandwich norm).
    Source: pre-norm: Xiong et al. 2020, arXiv 2002.04745; sandwich: Ding et al. 2021, arXiv 2105.13290, section 2.2.
    """

    causal, decodes = True, True

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.attn_norm, self.attn = make_norm(cfg), find_block(cfg.attn_block)(cfg)
        self.mlp_norm, self.mlp = make_norm(cfg), find_block(cfg.mlp_block)(cfg)
        self.attn_post_norm = make_norm(cfg) if cfg.post_norm else nn.Identity()
        self.mlp_post_norm = make_norm(cfg) if cfg.post_norm else nn.Identity()
        self.dropout = nn.Dropout(cfg.dropout_rate)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        x = x + self.dropout(self.attn_post_norm(self.attn(self.attn_norm(x), ctx)))
        return x + self.dropout(self.mlp_post_norm(self.mlp(self.mlp_norm(x), ctx)))


# ---------------------------------------------------------------- recipes: layers as text


@dataclass
class Move:
    """A step of a recipe, bound to the modules of one layer."""

    step: Step
    turns: tuple = ()  # for each time it runs: a unit's module by name, a group's lanes, branches' lanes and join
    taps: tuple[tuple[str, str], ...] = ()  # what is read: (argument of the unit's forward, tap)
    options: dict[str, Any] = field(default_factory=dict)  # of "+": its scale, and the names of what it learns


Bound = tuple[Move, ...]  # a lane


class Shared:
    """What the layers of one model share while they are built: what stands under tags, and the taps known so far."""

    def __init__(self, around: "Shared | None" = None):
        self.kinds: dict[str, tuple] = around.kinds if around else {}
        self.parts: dict[str, Any] = around.parts if around else {}
        self.taps: set[str] = set()


class RecipeLayer(LoggingModule):
    """One layer as a recipe says it: the residual r and the working value x run from step to step. See recipe.py.

    Its modules stand under the names of their blocks in lower case: `norm`, `attn`, `norm_2`, `mlp`. A block starts by
    adding nothing only where a plain `+` comes next: in front of anything else its zeros would let no gradient through.
    The recipe inside of a wrapper has taps of its own.
    """

    causal, decodes = True, True

    def __init__(
        self,
        cfg: ModelConfig,
        layer: Layer,
        depth: tuple[int, int] = (0, 1),  # which of how many layers this is, for values that depend on it
        shared: Shared | None = None,
        summed: bool | None = None,  # of a recipe inside of a wrapper: whether a plain "+" comes after the wrapper
    ):
        super().__init__()
        self.cfg, self.layer, self.depth, self.shared = cfg, layer, depth, shared or Shared()
        self.wrapped = summed is not None
        self.lanes = self._bind_lanes(layer.lanes, None, bool(summed))
        del self.shared  # only for building

    # ---- building: `tag` is what a part is shared under, `summed` whether a plain "+" comes next

    def _bind_lanes(self, lanes: tuple[Lane, ...], tag: str | None, summed: bool) -> tuple[Bound, ...]:
        return tuple(self._bind_lane(lane, tag and f"{tag}.{k}", summed) for k, lane in enumerate(lanes))

    def _bind_lane(self, lane: Lane, tag: str | None, summed: bool) -> Bound:
        moves = []
        for i, step in enumerate(lane.steps):
            following = lane.steps[i + 1].body if i + 1 < len(lane.steps) else None
            plain = summed if following is None else _is_plain_sum(following)
            moves.append(self._bind(step, tag and f"{tag}.{i}", plain))
            self.shared.taps |= set(step.taps)
        return tuple(moves)

    def _bind(self, step: Step, tag: str | None, summed: bool) -> Move:
        body, depth = step.body, self.depth
        if isinstance(body, Add):
            return self._bind_add(step, body, tag)
        if isinstance(body, Set):
            return Move(step)
        bind = {Unit: self._bind_unit, Group: self._bind_group, Branches: self._bind_branches}[type(body)]
        turns, copies = [], 1 if step.shared else step.times
        for j in range(copies):
            self.depth = (depth[0] * copies + j, depth[1] * copies)
            turns.append(bind(body, body.tag or (tag and f"{tag}.{j}"), summed and j + 1 == step.times))
        self.depth = depth
        taps = self._arguments(body)[1] if isinstance(body, Unit) else ()
        return Move(step, tuple(turns) * (step.times if step.shared else 1), taps)

    def _bind_unit(self, unit: Unit, tag: str | None, summed: bool) -> str:
        """Builds a unit's module, or takes the one that shares its tag; returns its name on this layer."""
        own = self._arguments(unit)[0]
        kind = (self._class(unit), unit.inner, own)
        name = self._take(tag, kind, lambda: self._construct(unit, own, summed), unit.name.lower(), unit.column)
        if not summed and unit.inner is None:
            for part in getattr(self, name).modules():
                if hasattr(part, "last"):
                    part.starts_at_zero = False
        return name

    def _bind_group(self, group: Group, tag: str | None, summed: bool) -> tuple[Bound, ...]:
        self._check_tag(tag, (group.layer,), group.column)
        return self._bind_lanes(group.layer.lanes, tag, summed and len(group.layer.lanes) == 1)

    def _bind_branches(self, body: Branches, tag: str | None, summed: bool) -> tuple[tuple[Bound, ...], str, str]:
        """The lanes, how they are joined, and the name of the matrix for that: "cat" and "gate" have one."""
        self._check_tag(tag, (body.lanes, body.args), body.column)
        options = {name or "join": at_depth(value, *self.depth) for name, value in body.args}
        join = options.pop("join", "sum")
        if options or len(body.args) > 1 or join not in ("sum", "mean", "cat", "gate"):
            self._fail('branches take join="sum", "mean", "cat" or "gate"', body.column)
        lanes = self._bind_lanes(body.lanes, tag, summed and join in ("sum", "mean"))
        if join in ("sum", "mean"):
            return lanes, join, ""
        D, count = self.cfg.dim, len(lanes)
        sizes = (count * D, D) if join == "cat" else (D, count)
        return lanes, join, self._take(tag and f"{tag}.join", sizes, lambda: nn.Linear(*sizes, bias=False), "join")

    def _bind_add(self, step: Step, body: Add, tag: str | None) -> Move:
        """Checks the options of `+` and makes what it learns."""
        args, taps = body.args, ()
        if args and args[0][0] is None and isinstance(args[0][1], Tap):
            args, taps = args[1:], (("", self._known(args[0][1], body.column)),)
        options = {name: at_depth(value, *self.depth) for name, value in args}
        wanted = {"scale": float, "gate": bool, "drop": float, "layer_scale": float}
        if not options.keys() <= wanted.keys():
            self._fail("'+' takes a tap, scale, gate, drop and layer_scale", body.column)
        for name, value in options.items():
            self._check_type("'+'", name, value, wanted[name], body.column)
        drop = options.get("drop", self.cfg.dropout_rate)
        if not 0 <= drop < 1:
            self._fail(f"'+': drop={drop} must be in [0, 1): it is the share that is dropped", body.column)
        made: dict[str, Any] = {"dropout": nn.Dropout(drop)}
        if "layer_scale" in options:
            made["layer_scale"] = nn.Parameter(torch.full((self.cfg.dim,), float(options["layer_scale"])))
        if options.get("gate"):
            made["gate"] = nn.Parameter(torch.zeros(()))
        names = {n: self._take(tag and f"{tag}.{n}", (n,), lambda n=n: made[n], n) for n in made}
        return Move(step, taps=taps, options={"scale": options.get("scale")} | names)

    def _take(self, tag: str | None, kind: tuple, make: Callable[[], Any], name: str, column: int = 0) -> str:
        """Registers what `make` makes, or what stands under the tag already; returns the name it got on this layer."""
        self._check_tag(tag, kind, column)
        part = self.shared.parts[tag] if tag in self.shared.parts else make()
        if tag:
            self.shared.parts[tag] = part
        full, number = name, 1
        while hasattr(self, full):
            number += 1
            full = f"{name}_{number}"
        setattr(self, full, part)
        return full

    def _check_tag(self, tag: str | None, kind: tuple, column: int) -> None:
        if tag and self.shared.kinds.setdefault(tag, kind) != kind:
            self._fail(f"#{tag} is shared with a part of another kind or other arguments", column)

    def _construct(self, unit: Unit, own: dict[str, Any], summed: bool) -> nn.Module:
        if unit.inner is not None:
            inner = RecipeLayer(self.cfg, unit.inner, self.depth, Shared(self.shared), summed)
            own = own | {"inner": inner}
        try:
            cls = self._class(unit)
            return make_norm(self.cfg, unit.name, **own) if cls in NORMS.values() else cls(self.cfg, **own)
        except RecipeError:
            raise
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            raise RecipeError(f"{unit.name}: {error}", self.layer.text, unit.column) from error

    def _class(self, unit: Unit) -> type:
        """The class that a unit's name stands for: `Norm`, `Attn` and `MLP` are what the config says."""
        cfg, name = self.cfg, unit.name
        name = {"Norm": cfg.norm_type, "Attn": cfg.attn_block, "MLP": cfg.mlp_block}.get(name, name)
        if name in NORMS:
            return NORMS[name]
        try:
            return find_block(name)
        except ValueError:
            known = sorted({*LAYERS, *NORMS, "Norm", "Attn"})
            close = difflib.get_close_matches(name, known, n=1)
            near = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            self._fail(f"unknown block {name!r}", unit.column, near + "; your own is registered with @layer")

    def _arguments(self, unit: Unit) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
        """A unit's arguments: those of its constructor, as they are at this depth, and its taps by argument."""
        cls = self._class(unit)
        offered, takes = _parameters(cls.__init__, 2), _parameters(cls.forward, 3)
        if (unit.inner is not None) != ("inner" in offered):
            has = "takes no" if unit.inner is not None else "needs an"
            self._fail(f"{unit.name} {has} inner recipe {{...}}", unit.column)
        offered.pop("inner", None)
        own, taps = {}, {}
        for name, value in unit.args:
            found, choices = (taps, takes) if isinstance(value, Tap) else (own, offered)
            name = name or next((choice for choice in choices if choice not in found), "")
            if name not in choices or name in found:
                close = difflib.get_close_matches(name, choices, n=1)
                has = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(choices) or 'none'}"
                kind = "argument" if found is own else "argument that is a tap"
                again = "the argument {!r} is given twice" if name in found else f"{unit.name} has no {kind} {{!r}}"
                self._fail(again.format(name), unit.column, "" if name in found else has)
            found[name] = self._known(value, unit.column) if found is taps else at_depth(value, *self.depth)
            if found is own:
                self._check_type(unit.name, name, own[name], offered[name], unit.column)
        return own, tuple(taps.items())

    def _check_type(self, owner: str, name: str, value: Any, wanted: Any, column: int) -> None:
        """Against an annotation such as `int` or `int | None`; others are left to the block."""
        kinds = (wanted,) if isinstance(wanted, type) else getattr(wanted, "__args__", ())
        if kinds and set(kinds) <= {int, float, bool, str, type(None)} and not _fits(value, kinds):
            names = " or ".join("none" if kind is type(None) else kind.__name__ for kind in kinds)
            self._fail(f"{owner}: {name}={value!r} must be of type {names}", column)

    def _known(self, tap: Tap, column: int) -> str:
        if tap.name not in self.shared.taps:
            known = ", ".join(f"@{name}" for name in sorted(self.shared.taps)) or "none"
            self._fail(f"@{tap.name} is used before a step kept it", column, f"known up to here: {known}")
        return tap.name

    def _fail(self, problem: str, column: int, remedy: str = "") -> NoReturn:
        raise RecipeError(problem, self.layer.text, column, remedy)

    # ---- running

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        ctx = replace(ctx, taps={}) if self.wrapped else ctx
        return self._run_lanes(self.lanes, x, x, ctx)[1]

    def _run_lanes(self, lanes: tuple[Bound, ...], r: Tensor, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """One lane goes on with r and x. Several start from r each, and what each of them added to r is added up."""
        if len(lanes) == 1:
            return self._run(lanes[0], r, x, ctx)
        ends = [self._run(lane, r, r, ctx)[1] for lane in lanes]
        r = r + sum(end - r for end in ends)
        return r, r

    def _run(self, lane: Bound, r: Tensor, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        for move in lane:
            body = move.step.body
            if isinstance(body, Add):
                r = x = r + self._added(move, x, ctx)
            elif isinstance(body, Set):
                r = x
            for number, turn in enumerate(move.turns):
                inside = ctx.at(number) if move.step.shared else ctx  # the same modules again: a state for each time
                if isinstance(body, Unit):
                    x = self._call(move, turn, x, inside)
                elif isinstance(body, Group):
                    r, x = self._run_lanes(turn, r, x, inside)
                else:
                    x = self._join(*turn, x, inside)
            for name in move.step.taps:
                ctx.taps[name] = x
        return r, x

    def _call(self, move: Move, name: str, x: Tensor, ctx: Context) -> Tensor:
        module = getattr(self, name)
        if type(module) in NORMS.values():
            return module(x)
        return module(x, ctx.at(name), **{argument: ctx.taps[tap] for argument, tap in move.taps})

    def _join(self, lanes: tuple[Bound, ...], join: str, name: str, x: Tensor, ctx: Context) -> Tensor:
        parts = [self._run(lane, x, x, ctx)[1] for lane in lanes]
        if join == "cat":
            return getattr(self, name)(torch.cat(parts, dim=-1))
        if join == "gate":
            weights = getattr(self, name)(x).softmax(dim=-1)  # (B, T, number of branches)
            return (torch.stack(parts, dim=-1) * weights[..., None, :]).sum(dim=-1)
        return sum(parts) / (len(parts) if join == "mean" else 1)

    def _added(self, move: Move, x: Tensor, ctx: Context) -> Tensor:
        """What `+` adds: x or a tap, scaled, gated and dropped out as its options say.

        Source: layer scale: Touvron et al. 2021, arXiv 2103.17239, eq. 6; tanh gate: Alayrac et al. 2022, arXiv
        2204.14198, section 2.3.
        """
        for _, tap in move.taps:
            x = ctx.taps[tap]
        options = move.options
        if "layer_scale" in options:
            x = x * getattr(self, options["layer_scale"])
        if "gate" in options:
            x = x * getattr(self, options["gate"]).tanh()
        x = getattr(self, options["dropout"])(x)
        return x if options["scale"] is None else x * options["scale"]


def _is_plain_sum(body: Any) -> bool:
    """Whether this is a `+` through which a gradient comes to what stands before it, though that be zero."""
    if not isinstance(body, Add):
        return False
    return all(name == "drop" or (name in ("scale", "layer_scale") and value != 0) for name, value in body.args)


def _parameters(function: Callable, skip: int) -> dict[str, Any]:
    """Annotations by name of a function's parameters but the first ones."""
    found = list(inspect.signature(function).parameters.values())[skip:]
    return {p.name: p.annotation for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _fits(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value is of one of these types; an int passes for a float, a bool never for a number."""
    kinds = (*kinds, int) if float in kinds else kinds
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def make_layers(cfg: ModelConfig) -> nn.ModuleList:
    """The stack: `num_layers` times the config's recipe, or a `ResidualLayer` where it has none."""
    if not cfg.recipe:
        return nn.ModuleList(ResidualLayer(cfg) for _ in range(cfg.num_layers))
    layer, shared, count = parse(cfg.recipe), Shared(), cfg.num_layers
    return nn.ModuleList(RecipeLayer(cfg, layer, (i, count), shared) for i in range(count))


# ---------------------------------------------------------------- the whole model


def make_head(cfg: ModelConfig) -> nn.Module:
    """(B, T, D) -> (B, T, V): one matrix, or two where the last is to be tied to a narrow embedding."""
    if cfg.embed_dim is None or not cfg.tied_head:
        return nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
    down = nn.Linear(cfg.dim, cfg.embed_dim, bias=False)
    return nn.Sequential(down, nn.Linear(cfg.embed_dim, cfg.vocab_size, bias=False))


class GPT(LoggingModule):
    """A decoder-only language model: tokens (B, T) int64 -> logits (B, T, V), row t predicting token t + 1.

    `model(tokens)` is `model.head(model.features(tokens))`. To decode step by step, make `ctx = model.context(tokens,
    decode=True)` once and call `model(new_tokens, ctx)` with only the tokens that are new.

    `embed_dim` factorises the embedding, V x embed_dim and then embed_dim x D, and a head tied to it likewise.
    Source: Lan et al. 2019, arXiv 1909.11942, section 3.1.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.embed_dim or cfg.dim)
        self.embed_up = nn.Linear(cfg.embed_dim, cfg.dim, bias=False) if cfg.embed_dim else None
        self.position_embed = nn.Embedding(cfg.max_seq_len, cfg.dim) if cfg.positions == "learned" else None
        self.dropout = nn.Dropout(cfg.dropout_rate)
        self.layers = make_layers(cfg)
        self.final_norm = make_norm(cfg)
        self.head = make_head(cfg)
        self.init_weights()
        if cfg.tied_head:
            self.readout.weight = self.embed.weight

    @property
    def readout(self) -> nn.Linear:
        """The head's last matrix, V rows."""
        return self.head if isinstance(self.head, nn.Linear) else self.head[-1]

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draws all weights from PyTorch's random state.

        Matrices keep the length of what they multiply (std 1/sqrt(inputs)); blocks start by adding nothing (their last
        matrix is zero), but not in front of a post-norm, which can't scale up a zero; logits start near zero, so that
        the first loss is ln V.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.readout.weight, std=0.02)
        for block in self.modules():
            if hasattr(block, "last") and not self.cfg.post_norm and getattr(block, "starts_at_zero", True):
                nn.init.zeros_(getattr(block, block.last).weight)

    def context(self, tokens: Tensor, *, decode: bool = False, segments: Tensor | None = None) -> Context:
        """The context for `model(tokens, ctx)`. With `decode=True` it starts an empty decode state for B rows.

        segments: (B, T) document numbers, to keep the documents of a packed row from seeing one another.
        """
        ctx = make_context(self.cfg, tokens, segments=segments)
        if decode:
            ctx.cache, ctx.seen = {}, torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        return ctx

    @log_io
    def forward(self, tokens: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T) int64 -> logits (B, T, V)"""
        return self.head(self.features(tokens, ctx))

    def predict(self, x: Tensor) -> Tensor:
        """Logits that the ends of this model read off a residual stream: (B, T, D) -> (B, T, V)"""
        return self.head(self.final_norm(x))

    @log_io
    def features(self, tokens: Tensor, ctx: Context | None = None) -> Tensor:
        """Everything but the head: (B, T) int64 -> (B, T, D). Raises ValueError for ids or lengths out of range."""
        self.check_tokens(tokens, ctx.span if ctx is not None else 0)
        ctx = self.context(tokens) if ctx is None else ctx
        if ctx.cache is not None:
            ctx.positions = ctx.seen[:, None] + torch.arange(tokens.shape[1], device=tokens.device)  # (B, T)
            ctx.rope = rope_tables(ctx.positions, self.cfg)
        ctx.tokens, ctx.predict = tokens, self.predict  # for heads that stand beside the stack (blocks/heads.py)
        ctx.taps.clear()
        x = self.dropout(self.embed_tokens(tokens, ctx))  # (B, T, D)
        for i, block in enumerate(self.layers):
            x = block(x, ctx.at(i))
        if ctx.cache is not None:
            ctx.seen, ctx.span = ctx.seen + tokens.shape[1], ctx.span + tokens.shape[1]
        return self.final_norm(x)

    @log_io
    def embed_tokens(self, tokens: Tensor, ctx: Context) -> Tensor:
        """Token vectors, with positions where these are added: (B, T) int64 -> (B, T, D)"""
        x = self.embed(tokens) if self.embed_up is None else self.embed_up(self.embed(tokens))
        if self.cfg.scale_first_residual:
            x = x * self.cfg.dim**0.5
        if self.position_embed is not None:
            x = x + self.position_embed(ctx.positions)
        if self.cfg.positions == "sinusoidal":
            x = x + sinusoid(ctx.positions, self.cfg.dim)
        return x

    def check_tokens(self, tokens: Tensor, seen: int = 0) -> None:
        """Raises ValueError or TypeError for tokens that this model cannot take, `seen` of them being in the cache."""
        if tokens.ndim != 2 or tokens.dtype.is_floating_point or tokens.dtype == torch.bool:
            raise TypeError(f"tokens must be int64 of shape (B, T), not {tokens.dtype} of shape {tuple(tokens.shape)}")
        if seen + tokens.shape[1] > self.cfg.max_seq_len:
            already = f" beside {seen} in the cache" if seen else ""
            raise ValueError(
                f"{tokens.shape[1]} tokens{already} exceed max_seq_len={self.cfg.max_seq_len}: "
                "pass fewer (generate() does so by itself), or make a model with a larger max_seq_len"
            )
        # Elsewhere than on a CPU this look would make the device wait, and inside a compiled graph it can't be taken.
        if tokens.device.type == "cpu" and tokens.numel() and not torch.compiler.is_compiling():
            low, high = tokens.min().item(), tokens.max().item()
            if low < 0 or high >= self.cfg.vocab_size:
                raise ValueError(
                    f"token id {low if low < 0 else high} is outside 0..{self.cfg.vocab_size - 1} (vocab_size="
                    f"{self.cfg.vocab_size}): was the text encoded with another tokenizer?"
                )
