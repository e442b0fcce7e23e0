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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from recipe import Add, Args, Branches, Group, Lane, Layer, RecipeError, Set, Step, Tap, Unit, at_depth, parse
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
    given, if both lie in the same segment (document). `allowed` turns it into booleans for the rows asked for.
    """

    positions: Tensor  # (T,) or (B, T) int64: each token's place in its row, from 0
    rope: tuple[Tensor, Tensor] | None = None  # cos and sin, each (T, K/2) or (B, T, K/2)
    segments: Tensor | None = None  # (B, T) int64: document number of each token of a packed row
    cache: dict | None = None  # decode state by slot; None: nothing is kept
    seen: Tensor | None = None  # (B,) int64: tokens of each row in the cache
    span: int = 0  # the largest of `seen`, as a plain number
    aux: dict = field(default_factory=dict)  # auxiliary losses by (slot, name)
    taps: dict = field(default_factory=dict)  # what a recipe kept with `@name` in this forward pass
    memory: Tensor | None = None  # what cross-attention looks at: S vectors of width D for each row
    slot: str = ""  # whose turn it is; set by the stack, so that shared weights keep separate states

    def at(self, slot) -> "Context":
        """The same context as seen from one place in the stack; state and losses stay common to all places."""
        return replace(self, slot=f"{self.slot}.{slot}" if self.slot else str(slot))

    def allowed(self, start: int, stop: int, num_keys: int) -> Tensor:
        """Which keys 0..num_keys-1 queries start..stop-1 may look at: bool (stop-start, S) or (B, 1, stop-start, S)."""
        queries = self.positions[..., start:stop, None]
        keys = torch.arange(num_keys, device=queries.device)
        mask = keys <= queries  # (C, S) or (B, C, S), with C = stop - start
        if self.segments is not None:
            mask = mask & (self.segments[:, start:stop, None] == self.segments[:, None, :num_keys])
        return mask[:, None] if mask.ndim == 3 else mask

    def rewind(self, lengths: Tensor) -> None:
        """Keeps the first lengths[b] tokens of row b in the cache; what stood behind them will be overwritten."""
        self.seen, self.span = lengths.to(self.seen), int(lengths.max())


def make_context(cfg: ModelConfig, x: Tensor, *, segments: Tensor | None = None) -> Context:
    """The context of a plain forward pass over x, tokens (B, T) or activations (B, T, D)."""
    positions = torch.arange(x.shape[1], device=x.device)
    return Context(positions, rope=rope_tables(positions, cfg), segments=segments)


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


NORMS = {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm, "CosineNorm": CosineNorm}


def make_norm(cfg: ModelConfig, name: str = "Norm", **own) -> LoggingModule:
    """The norm of that name over D channels, `Norm` being the config's; `own` wins over the config's settings."""
    settings = {"eps": cfg.norm_eps, "affine": cfg.norm_affine, "bias": cfg.norm_bias} | own
    return NORMS[cfg.norm_type if name == "Norm" else name](cfg.dim, **settings)


# ---------------------------------------------------------------- positions


def rope_tables(positions: Tensor, cfg: ModelConfig) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines of RoPE's angles: positions (...,) -> two of (..., K/2) fp32; None where RoPE is not used.

    Pair i of channels turns by position * theta^(-2i/K): the first pairs fast, the last ones slowly.
    """
    if cfg.positions != "rope":
        return None
    pairs = torch.arange(0, cfg.head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * cfg.rope_theta ** (-pairs / cfg.head_dim)
    return angles.cos(), angles.sin()


@log_io
def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair of channels (i, i + K/2) of x by its position's angle: (B, T, ..., K) -> (B, T, ..., K).

    The product of two such vectors depends on their positions through the difference alone.
    Source: Su et al. 2021, arXiv 2104.09864, eq. 34, with the halves of a head as pairs (as in Llama's published
    code) where the paper pairs neighbours; real-valued, so that it runs on every device.
    """
    cos, sin = (table[..., None, :].to(x.dtype) for table in rope)  # (T, 1, K/2) or (B, T, 1, K/2)
    a, b = x.chunk(2, dim=-1)  # each (B, T, H, K/2), or (B, T, G, K/2) for keys
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


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
    """softmax(q k^T / sqrt(K) + mask) v, where all masks meet: q (B, H, T, K), k and v (B, G, S, K) -> (B, H, T, K).

    Query head h uses key/value head h // (H/G). Three ways to the same numbers: PyTorch's fused kernel with its own
    causal mask where that is fast, the fused kernel with an explicit mask while decoding, and chunks for long rows on
    a CPU.
    Source: Vaswani et al. 2017, arXiv 1706.03762, eq. 1; grouped heads: Ainslie et al. 2023, arXiv 2305.13245.
    """
    decoding = ctx.cache is not None
    if not decoding and q.device.type == "cpu" and q.shape[2] > CHUNK:
        return attend_in_chunks(q, k, v, ctx)
    grouped = q.shape[1] != k.shape[1]
    if decoding or ctx.segments is not None:
        mask = ctx.allowed(0, q.shape[2], k.shape[2])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


@log_io
def attend_in_chunks(q: Tensor, k: Tensor, v: Tensor, ctx: Context) -> Tensor:
    """The same as `attend` for T = S, by pieces of CHUNK query rows: shapes as there.

    A piece looks only at the keys up to its own last row, so that almost half of the products are never made, and the
    query heads of one group become rows of a single matrix product. On a CPU this outruns the fused kernel's backward.
    """
    B, H, T, K = q.shape
    G = k.shape[1]
    q = (q * K**-0.5).reshape(B, G, H // G, T, K)
    pieces = []
    for start in range(0, T, CHUNK):
        stop = min(start + CHUNK, T)
        rows = q[:, :, :, start:stop].reshape(B, G, -1, K)  # (B, G, H/G * C, K), with C = stop - start
        scores = rows @ k[:, :, :stop].transpose(-1, -2)  # (B, G, H/G * C, S), with S = stop
        mask = ctx.allowed(start, stop, stop)  # (C, S) or (B, 1, C, S)
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -math.inf)  # adding beats filling
        scores = scores.view(B, G, H // G, stop - start, stop) + (mask if mask.ndim == 2 else mask[:, None])
        weights = scores.softmax(dim=-1).to(v.dtype).view(B, G, -1, stop)
        pieces.append((weights @ v[:, :, :stop]).view(B, G, H // G, stop - start, K))
    return torch.cat(pieces, dim=3).reshape(B, H, T, K)


@layer("MQA")
class MQA(LoggingModule):
    """Causal self-attention whose H query heads share G key/value heads: each position gathers from those before it.

    G = H is multi-head attention, G = 1 multi-query attention (Shazeer 2019, arXiv 1911.02150), between them
    grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245). With `qk_norm`, queries and keys are RMS-normalised
    per head before RoPE (Henry et al. 2020, arXiv 2010.04245; as in Qwen3).
    Decode state: keys and values of the tokens seen, 2 x G x K numbers per token.
    """

    causal, decodes = True, True
    last = "Wo"  # the matrix that writes to the residual stream: it starts at zero

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        H, G, K = cfg.num_q_heads, cfg.num_kv_heads, cfg.head_dim
        self.Wq = nn.Linear(cfg.dim, H * K, bias=False)
        self.Wk = nn.Linear(cfg.dim, G * K, bias=False)
        self.Wv = nn.Linear(cfg.dim, G * K, bias=False)
        self.Wo = nn.Linear(H * K, cfg.dim, bias=False)
        self.q_norm = RMSNorm(K, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(K, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        q, k, v = self.project(x, ctx)
        if ctx.cache is not None:
            k, v = self.remember(k, v, ctx)  # (B, G, S, K)
        out = attend(q, k, v, ctx)  # (B, H, T, K)
        return self.Wo(out.transpose(1, 2).flatten(2))  # (B, T, D)

    @log_io
    def project(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, heads first: (B, T, D) -> (B, H, T, K), (B, G, T, K), (B, G, T, K)"""
        q = self.q_norm(self.Wq(x).unflatten(-1, (-1, self.cfg.head_dim)))  # (B, T, H, K)
        k = self.k_norm(self.Wk(x).unflatten(-1, (-1, self.cfg.head_dim)))  # (B, T, G, K)
        v = self.Wv(x).unflatten(-1, (-1, self.cfg.head_dim))  # (B, T, G, K)
        if ctx.rope is not None:
            q, k = rotate(q, ctx.rope), rotate(k, ctx.rope)
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
    names: tuple[str, ...] = ()  # of a unit: the module for each time it runs
    inner: tuple[tuple["Lane_", ...], ...] = ()  # of a group or branches: the bound lanes for each time
    taps: tuple[tuple[str, str], ...] = ()  # arguments of the unit's forward that are taps: (argument, tap)


Lane_ = tuple[Move, ...]


class Shared:
    """What the layers of one model share while they are built: tagged modules, and the taps that exist so far."""

    def __init__(self):
        self.modules: dict[str, tuple[tuple, nn.Module]] = {}
        self.taps: set[str] = set()


class RecipeLayer(LoggingModule):
    """One layer as a recipe says it: the residual r and the working value x run from step to step. See recipe.py.

    Its modules stand under the names of their blocks in lower case: `norm`, `attn`, `norm_2`, `mlp`.
    """

    causal, decodes = True, True

    def __init__(self, cfg: ModelConfig, layer: Layer, index: int = 0, shared: Shared | None = None):
        super().__init__()
        self.cfg, self.layer, self.shared = cfg, layer, shared or Shared()
        self.depth = (index, cfg.num_layers)  # for values that depend on it
        self.lanes = tuple(self._bind_lane(lane) for lane in layer.lanes)
        del self.shared  # only for building

    # ---- building

    def _bind_lane(self, lane: Lane, tag: str | None = None) -> Lane_:
        moves = []
        for i, step in enumerate(lane.steps):
            following = lane.steps[i + 1].body if i + 1 < len(lane.steps) else None
            before_norm = isinstance(following, Unit) and following.name in ("Norm", *NORMS)
            moves.append(self._bind(step, f"{tag}.{i}" if tag else None, before_norm))
            self.shared.taps |= set(step.taps)
        return tuple(moves)

    def _bind(self, step: Step, tag: str | None, before_norm: bool) -> Move:
        body, times = step.body, step.times
        if isinstance(body, Add):
            return Move(step, names=self._bind_add(body))
        if isinstance(body, Set):
            return Move(step)
        if isinstance(body, Unit):
            taps = tuple((name, value.name) for name, value in self._arguments(body).items() if isinstance(value, Tap))
            made = [self._make(body, tag, before_norm, j, times) for j in range(1 if step.shared else times)]
            return Move(step, names=tuple(made) * (times if step.shared else 1), taps=taps)
        lanes = body.layer.lanes if isinstance(body, Group) else body.lanes
        tag = body.tag or tag
        inner = []
        for j in range(1 if step.shared else times):
            depth, self.depth = self.depth, (self.depth[0] * times + j, self.depth[1] * times)
            inner.append(tuple(self._bind_lane(lane, f"{tag}.{k}" if tag else None) for k, lane in enumerate(lanes)))
            self.depth = depth
        names = self._bind_join(body) if isinstance(body, Branches) else ()
        return Move(step, names, tuple(inner) * (times if step.shared else 1))

    def _make(self, unit: Unit, tag: str | None, before_norm: bool, turn: int, times: int) -> str:
        """Builds one unit's module, or takes the one that shares its tag; returns its name on this layer."""
        own = {name: value for name, value in self._arguments(unit, turn, times).items() if not isinstance(value, Tap)}
        tag, key = unit.tag or tag, (unit.name, tuple(sorted((k, repr(v)) for k, v in own.items())))
        known = self.shared.modules.get(tag) if tag else None
        if known is not None and known[0] != key:
            self._fail(f"#{tag} is shared with a unit of another kind or other arguments", unit.column)
        module = known[1] if known is not None else self._construct(unit, own)
        if known is None and before_norm:
            module.starts_at_zero = False  # the norm behind it could not scale up a zero
        if tag:
            self.shared.modules[tag] = (key, module)
        return self._register(unit.name.lower(), module)

    def _construct(self, unit: Unit, own: dict[str, Any]) -> nn.Module:
        if unit.inner is not None:
            own = own | {"inner": RecipeLayer(self.cfg, unit.inner, self.depth[0], self.shared)}
        try:
            return (
                make_norm(self.cfg, unit.name, **own)
                if _is_norm(unit.name)
                else _block(self.cfg, unit.name)(self.cfg, **own)
            )
        except (ValueError, TypeError) as error:
            if isinstance(error, RecipeError):
                raise
            raise RecipeError(f"{unit.name}: {error}", self.layer.text, unit.column) from error

    def _arguments(self, unit: Unit, turn: int = 0, times: int = 1) -> dict[str, Any]:
        """The arguments by name, with the values of this depth."""
        offered = self._offered(unit)
        index, count = self.depth[0] * times + turn, self.depth[1] * times
        found = {}
        for position, (name, value) in enumerate(unit.args):
            if name is None and position >= len(offered):
                self._fail(f"{unit.name} takes {len(offered)} arguments, not {len(unit.args)}", unit.column)
            name = name or offered[position]
            if name not in offered and not isinstance(value, Tap):
                close = difflib.get_close_matches(name, offered, n=1)
                remedy = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(offered) or 'none'}"
                self._fail(f"{unit.name} has no argument {name!r}", unit.column, remedy)
            if isinstance(value, Tap):
                self._need_tap(value, unit.column)
            found[name] = at_depth(value, index, count)
        return found

    def _offered(self, unit: Unit) -> list[str]:
        """The arguments that may be set from a recipe: those of the class's constructor behind `cfg`."""
        if _is_norm(unit.name):
            return ["eps", "affine", "bias"]
        try:
            cls = _block(self.cfg, unit.name)
        except ValueError:
            known = sorted({*LAYERS, *NORMS, "Norm", "Attn"})
            close = difflib.get_close_matches(unit.name, known, n=1)
            remedy = (
                f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}; register yours with @layer"
            )
            self._fail(f"unknown block {unit.name!r}", unit.column, remedy)
        names = list(inspect.signature(cls.__init__).parameters)[2:]
        if (unit.inner is not None) != ("inner" in names):
            self._fail(
                f"{unit.name} {'takes no' if unit.inner is not None else 'needs an'} inner recipe {{...}}", unit.column
            )
        return [name for name in names if name != "inner"]

    def _bind_add(self, body: Add) -> tuple[str, ...]:
        """Checks the options of `+` and makes what it learns."""
        for position, (name, value) in enumerate(body.args):
            if name is None and isinstance(value, Tap) and position == 0:
                self._need_tap(value, body.column)
            elif name not in ("scale", "gate", "drop", "layer_scale"):
                self._fail("'+' takes a tap, scale, gate, drop and layer_scale", body.column)
        options = self._options(body.args)
        names = []
        if "layer_scale" in options:
            parameter = nn.Parameter(torch.full((self.cfg.dim,), float(options["layer_scale"])))
            names.append(self._register("layer_scale", parameter))
        if options.get("gate"):
            names.append(self._register("gate", nn.Parameter(torch.zeros(()))))
        rate = options.get("drop", self.cfg.dropout_rate)
        names.append(self._register("dropout", nn.Dropout(rate)))
        return tuple(names)

    def _bind_join(self, body: Branches) -> tuple[str, ...]:
        """Makes what joins the branches: nothing for "sum" and "mean", a matrix for "cat" and "gate"."""
        join = self._options(body.args).get("join", "sum")
        if any(name != "join" for name, _ in body.args) or join not in ("sum", "mean", "cat", "gate"):
            self._fail('branches take join="sum", "mean", "cat" or "gate"', body.column)
        D, count = self.cfg.dim, len(body.lanes)
        if join == "cat":
            return (self._register("join", nn.Linear(count * D, D, bias=False)),)
        return (self._register("gates", nn.Linear(D, count, bias=False)),) if join == "gate" else ()

    def _options(self, args: Args) -> dict[str, Any]:
        return {name: at_depth(value, *self.depth) for name, value in args if name is not None}

    def _register(self, name: str, part: nn.Module | nn.Parameter) -> str:
        full, number = name, 1
        while hasattr(self, full):
            number += 1
            full = f"{name}_{number}"
        setattr(self, full, part)
        return full

    def _need_tap(self, tap: Tap, column: int) -> None:
        if tap.name not in self.shared.taps:
            known = ", ".join(f"@{name}" for name in sorted(self.shared.taps)) or "none"
            self._fail(f"@{tap.name} is used before a step kept it", column, f"known up to here: {known}")

    def _fail(self, problem: str, column: int, remedy: str = "") -> None:
        raise RecipeError(problem, self.layer.text, column, remedy)

    # ---- running

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        if len(self.lanes) == 1:
            return self._run(self.lanes[0], x, x, ctx)[1]
        return self._merge(self.lanes, x, ctx)

    @see_through
    def _merge(self, lanes: tuple[Lane_, ...], r: Tensor, ctx: Context) -> Tensor:
        """Lanes side by side, each from r: r plus what each of them added."""
        ends = [self._run(lane, r, r, ctx)[1] for lane in lanes]
        return r + sum(end - r for end in ends)

    @see_through
    def _run(self, moves: Lane_, r: Tensor, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        for move in moves:
            body = move.step.body
            if isinstance(body, Add):
                r = x = r + self._added(move, x, ctx)
            elif isinstance(body, Set):
                r = x
            elif isinstance(body, Unit):
                x = self._call(move, x, ctx)
            elif isinstance(body, Branches):
                x = self._join(move, x, ctx)
            else:
                r, x = self._group(move, r, x, ctx)
            for name in move.step.taps:
                ctx.taps[name] = x
        return r, x

    @see_through
    def _call(self, move: Move, x: Tensor, ctx: Context) -> Tensor:
        for turn, name in enumerate(move.names):
            module = getattr(self, name)
            if isinstance(module, Norm):
                x = module(x)
                continue
            taps = {argument: ctx.taps[tap] for argument, tap in move.taps}
            x = module(x, ctx.at(f"{name}.{turn}" if move.step.shared else name), **taps)
        return x

    @see_through
    def _group(self, move: Move, r: Tensor, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        for turn, lanes in enumerate(move.inner):
            inside = ctx.at(turn) if move.step.shared else ctx  # the same modules again: a state for each time
            if len(lanes) == 1:
                r, x = self._run(lanes[0], r, x, inside)
            else:
                r = x = self._merge(lanes, r, inside)
        return r, x

    @see_through
    def _join(self, move: Move, x: Tensor, ctx: Context) -> Tensor:
        join = dict(move.step.body.args).get("join", "sum")
        for turn, lanes in enumerate(move.inner):
            inside = ctx.at(turn) if move.step.shared else ctx
            parts = [self._run(lane, x, x, inside)[1] for lane in lanes]
            if join == "cat":
                x = getattr(self, move.names[0])(torch.cat(parts, dim=-1))
            elif join == "gate":
                weights = getattr(self, move.names[0])(x).softmax(dim=-1)  # (B, T, number of branches)
                x = (torch.stack(parts, dim=-1) * weights[..., None, :]).sum(dim=-1)
            else:
                x = sum(parts) / (len(parts) if join == "mean" else 1)
        return x

    @see_through
    def _added(self, move: Move, x: Tensor, ctx: Context) -> Tensor:
        """What `+` adds: x or a tap, scaled, gated and dropped out as its options say.

        Source: layer scale: Touvron et al. 2021, arXiv 2103.17239, eq. 6; tanh gate: Alayrac et al. 2022, arXiv
        2204.14198, section 2.3.
        """
        args = move.step.body.args
        if args and isinstance(args[0][1], Tap) and args[0][0] is None:
            x = ctx.taps[args[0][1].name]
        for name in move.names:
            part = getattr(self, name)
            if isinstance(part, nn.Dropout):
                x = part(x)
            elif name.startswith("gate"):
                x = x * part.tanh()
            else:
                x = x * part
        scale = self._options(args).get("scale")
        return x if scale is None else x * scale


def _is_norm(name: str) -> bool:
    return name == "Norm" or name in NORMS


def _block(cfg: ModelConfig, name: str) -> type:
    """The class for a name in a recipe; `Attn` and `MLP` are what the config says."""
    return find_block({"Attn": cfg.attn_block, "MLP": cfg.mlp_block}.get(name, name))


def make_layers(cfg: ModelConfig) -> nn.ModuleList:
    """The stack: `num_layers` times the config's recipe, or a `ResidualLayer` where it has none."""
    if not cfg.recipe:
        return nn.ModuleList(ResidualLayer(cfg) for _ in range(cfg.num_layers))
    layer, shared = parse(cfg.recipe), Shared()
    return nn.ModuleList(RecipeLayer(cfg, layer, i, shared) for i in range(cfg.num_layers))


# ---------------------------------------------------------------- the whole model


class GPT(LoggingModule):
    """A decoder-only language model: tokens (B, T) int64 -> logits (B, T, V), row t predicting token t + 1.

    `model(tokens)` is `model.head(model.features(tokens))`. To decode step by step, make `ctx = model.context(tokens,
    decode=True)` once and call `model(new_tokens, ctx)` with only the tokens that are new.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.position_embed = nn.Embedding(cfg.max_seq_len, cfg.dim) if cfg.positions == "learned" else None
        self.dropout = nn.Dropout(cfg.dropout_rate)
        self.layers = make_layers(cfg)
        self.final_norm = make_norm(cfg)
        self.head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        self.init_weights()
        if cfg.tied_head:
            self.head.weight = self.embed.weight

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
        nn.init.normal_(self.head.weight, std=0.02)
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

    @log_io
    def features(self, tokens: Tensor, ctx: Context | None = None) -> Tensor:
        """Everything but the head: (B, T) int64 -> (B, T, D). Raises ValueError for ids or lengths out of range."""
        self.check_tokens(tokens, ctx.span if ctx is not None else 0)
        ctx = self.context(tokens) if ctx is None else ctx
        if ctx.cache is not None:
            ctx.positions = ctx.seen[:, None] + torch.arange(tokens.shape[1], device=tokens.device)  # (B, T)
            ctx.rope = rope_tables(ctx.positions, self.cfg)
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
        x = self.embed(tokens)
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
