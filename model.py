"""A small GPT, to be read from top to bottom: norms, positions, attention, MLP, residual layer, the whole model.

Dimension key, used in every shape comment:
    B  batch: rows processed side by side          T  query length: tokens in a row
    S  key length: tokens that can be looked at    D  dim: width of the residual stream
    H  query heads      G  key/value heads         K  head_dim: width of one head
    F  MLP hidden width                            V  vocabulary size

Every block takes (B, T, D) to (B, T, D). What concerns the whole batch (positions, masks, decode state) travels beside
x in a `Context`; nothing is kept on a module between calls.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from recipe import nearest, parse
from tools import LoggingModule, log_io

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
    close = nearest(name, LAYERS)
    raise ValueError(
        f"unknown block {name!r}; {f'did you mean {close!r}?' if close else f'there are {sorted(LAYERS)}'} "
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
    tokens: Tensor | None = None  # what the model was called with, T ids in each of B rows
    predict: Callable[[Tensor], Tensor] | None = None  # the model's final norm and head, in one
    fused: Callable[..., Tensor] | None = None  # a compiled attention, lab/fused_attention.py; None: plain PyTorch
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
    slowly. R is the config's `rope_dim`, or the whole head. `rope_factor` slows them down for a longer context.
    """
    if not cfg.positions.startswith("rope"):
        return None
    width = cfg.rope_dim or cfg.head_dim
    pairs = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    speeds = cfg.rope_theta ** (-pairs / width)  # (R/2,), in radians per position
    speeds = speeds if cfg.rope_factor == 1 else slowed(speeds, cfg)
    angles = positions[..., None].float() * speeds
    return angles.cos(), angles.sin()


def slowed(speeds: Tensor, cfg: ModelConfig) -> Tensor:
    """RoPE's speeds (R/2,) for a context that is longer than the one a model was trained with.

    All are divided by `rope_factor` (Chen et al. 2023, arXiv 2306.15595, eq. 4), so that no angle is a new one. With
    `rope_original_len`, only those are that made less than 1 full turn in that many positions; those that made more
    than 4 stay, to tell neighbours apart as before, and between the two the share that stays rises from 0 to 1
    (Llama 3.1's published code, with its constants 1 and 4).
    """
    if cfg.rope_original_len is None:
        return speeds / cfg.rope_factor
    turns = speeds * cfg.rope_original_len / (2 * math.pi)
    stays = ((turns - 1) / (4 - 1)).clamp(0, 1)
    return stays * speeds + (1 - stays) * speeds / cfg.rope_factor


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
        # (a cos - b sin, b cos + a sin) for the halves a and b. Written out for every head, the tables make long rows
        # for the processor; in their narrow form these products would take several times as long.
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        cos, sin = (table.expand(x.shape[-table.ndim :]).contiguous() for table in (cos, sin))
        x = x * cos + x.roll(R // 2, dims=-1) * sin
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
    weights that are no plain softmax (`ctx.weigh`). A compiled attention in `ctx.fused` is asked first; it gives the
    same numbers, too, and leaves to the others what it can't do.
    Source: Vaswani et al. 2017, arXiv 1706.03762, eq. 1; grouped heads: Ainslie et al. 2023, arXiv 2305.13245.
    """
    if ctx.fused is not None and ctx.fused.takes(q, k, v, ctx):
        return ctx.fused(q, k, v, ctx.window, ctx.segments)
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


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh formula, as in GPT-2. Source: Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2."""
    return F.gelu(x, approximate="tanh")


NONLINEARITIES = {
    "silu": F.silu, "gelu": F.gelu, "gelu_tanh": gelu_tanh,
    "relu": F.relu, "relu2": relu2, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
}  # fmt: skip


@layer("MLP")
class MLP(LoggingModule):
    """Wdown(f(Wgate x) * Wup x), or Wdown(f(Wup x)) without the gate: each position is worked on by itself.

    Decode state: none.
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
    Decode state: its attention's.
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


# ---------------------------------------------------------------- the stack


def make_layers(cfg: ModelConfig) -> nn.ModuleList:
    """The stack: `num_layers` times the config's recipe, or a `ResidualLayer` where it has none."""
    if not cfg.recipe:
        return nn.ModuleList(ResidualLayer(cfg) for _ in range(cfg.num_layers))
    from blocks.recipe_layer import RecipeLayer, Shared

    layer, shared, count = parse(cfg.recipe), Shared(), cfg.num_layers
    return nn.ModuleList(RecipeLayer(cfg, layer, (i, count), shared) for i in range(count))


# ---------------------------------------------------------------- the whole model


class CappedLinear(nn.Linear):
    """cap * tanh(W x / cap): small logits stay what they are, and none leaves (-cap, cap).

    Source: Gemma Team 2024, arXiv 2408.00118, section 2, with cap = 30 for a head.
    """

    def __init__(self, inputs: int, outputs: int, cap: float):
        super().__init__(inputs, outputs, bias=False)
        self.cap = cap

    @log_io
    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
        return self.cap * torch.tanh(F.linear(x, self.weight) / self.cap)


def make_head(cfg: ModelConfig) -> nn.Module:
    """From width D to V logits: one matrix, or two where the last is to be tied to a narrow embedding."""
    narrow = cfg.embed_dim is not None and cfg.tied_head
    sizes = cfg.embed_dim if narrow else cfg.dim, cfg.vocab_size
    readout = nn.Linear(*sizes, bias=False) if cfg.logit_cap is None else CappedLinear(*sizes, cfg.logit_cap)
    return nn.Sequential(nn.Linear(cfg.dim, cfg.embed_dim, bias=False), readout) if narrow else readout


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
        """Logits that the ends of this model read off a residual stream x (B, T, D)."""
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
