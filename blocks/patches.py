"""Byte-level models: bytes are gathered into patches, a large model runs over the patches, a small one over the bytes.

Two more letters of the dimension key:  P  patches in a row: T // Z      Z  size: bytes in a patch

Two wrappers, which meet in a recipe for a whole model (num_layers=1), L being "Norm->Attn->+->Norm->MLP->+":

    'Norm->=->Patch(size=4,pool="concat"){{L}*6}->+->Within(size=4,ahead=true){{L}*2}'                  MegaByte
    'Norm->=->Within(size=4){L}->=->Patch(size=4){{L}*6}->+->Within(size=4,ahead=true){{L}*2}'
                                                                                      Super Tiny Language Models

What is before `Patch` is the byte encoder, what is in it the global model, what is behind it the byte decoder; the `+`
gives the decoder the sum of the bytes themselves and what the global model said of the patches before them. `Norm->=`
first brings the embeddings, which start small, to the size of the global model's output: without it the decoder hardly
sees the bytes, and learns their frequencies and no more for hundreds of steps.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from model import Context, layer, make_context, rope_tables
from tools import LoggingModule, log_io

POOLS = ("mean", "concat")


@layer("Patch")
class Patch(LoggingModule):
    """Runs its inner recipe over patches of `size` bytes instead of over bytes.

        g_p = inner(pool(x_pZ, ..., x_pZ+Z-1))        once for each full patch p, Z = size
        y_t = Wspread_j g_p                           with t + 1 = (p + 1) Z + j and 0 <= j < Z

    Row t of a model predicts byte t + 1. A patch is known when its last byte is read, so the last byte's row is the
    first that g_p may reach, and Z rows share it, each through its own D x D slice of Wspread. The first Z - 1 rows
    have no full patch behind them: they get a learned vector. With size=1 there is nothing to pool or to spread, and
    this is the plain inner recipe.

    pool: "mean" adds no parameters, but sees the order of the bytes only through what an encoder before it (`Within`)
    wrote into them; "concat" is a matrix over the Z vectors laid end to end.
    The inner recipe counts positions in patches, keeps its state under its own slots, and its taps to itself.
    Decode state: D numbers per byte and D per patch, beside the inner recipe's, of one token per patch. While
    decoding, the inner recipe runs only when a patch fills up. Where rows fill theirs at different times, the late
    ones' unfinished patches run along, as padding does, and are overwritten later. Packed documents are refused: a
    patch could span two.
    Source: pool="concat": Yu et al. 2023, arXiv 2305.07185, section 2.2 (there the global width is Z times the
    bytes', here Wpool and Wspread bring it to D; their learned padding goes through the global model, here it stands
    for its output). pool="mean": Hillier et al. 2024, arXiv 2405.14159, byte-level model (there patches end at the
    tokens of a BPE tokenizer, here they are all of one size).
    """

    causal, decodes = True, True

    def __init__(self, cfg: ModelConfig, inner: nn.Module, *, size: int = 4, pool: str = "mean"):
        super().__init__()
        _check_size(size)
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown; choose from {', '.join(POOLS)}")
        self.cfg, self.inner, self.size = cfg, inner, size
        self.Wpool = nn.Linear(size * cfg.dim, cfg.dim, bias=False) if pool == "concat" and size > 1 else None
        self.Wspread = nn.Linear(cfg.dim, size * cfg.dim, bias=False) if size > 1 else None
        self.start = nn.Parameter(0.02 * torch.randn(cfg.dim)) if size > 1 else None

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        if self.size == 1:
            return self.inner(x, ctx)
        _refuse_segments("Patch", ctx)
        if ctx.cache is not None:
            return self.step(x, ctx)
        P = x.shape[1] // self.size  # a last patch that isn't full reaches no row
        if P == 0:
            return self.start.to(x.dtype).expand_as(x)
        patches = self.pool(x[:, : P * self.size].unflatten(1, (P, self.size)))  # (B, P, D)
        positions = torch.arange(P, device=x.device)
        spread = self.spread(self.inner(patches, _child(ctx, self.cfg, positions)))  # (B, P, Z, D)
        first = self.start.to(x.dtype).expand(len(x), self.size - 1, -1)  # (B, Z - 1, D)
        return torch.cat((first, spread.flatten(1, 2)), dim=1)[:, : x.shape[1]]  # (B, T, D)

    @log_io
    def pool(self, pieces: Tensor) -> Tensor:
        """One vector for each patch: (B, P, Z, D) -> (B, P, D)"""
        return pieces.mean(dim=2) if self.Wpool is None else self.Wpool(pieces.flatten(2))

    @log_io
    def spread(self, patches: Tensor) -> Tensor:
        """What each of the Z rows behind a patch gets of it: (B, P, D) -> (B, P, Z, D)"""
        return self.Wspread(patches).unflatten(-1, (self.size, -1))

    @log_io
    def step(self, x: Tensor, ctx: Context) -> Tensor:
        """`forward` for the bytes that are new, with what came before in the cache: (B, T, D) -> (B, T, D)"""
        Z = self.size
        past = _keep(x, ctx.positions, ctx.at("bytes"), self.cfg.max_seq_len)  # (B, max_seq_len, D)
        full = ctx.seen // Z  # (B,): patches that were full before
        new = int(((ctx.seen + x.shape[1]) // Z - full).max())  # P: the most that any row fills now
        numbers = full[:, None] + torch.arange(new, device=x.device)  # (B, P)
        patches = x[:, :0]  # (B, 0, D)
        if new:
            pieces = _rows(past, numbers[..., None] * Z + torch.arange(Z, device=x.device))  # (B, P, Z, D)
            inside = replace(_child(ctx, self.cfg, numbers), cache=ctx.cache, seen=full, span=ctx.span // Z)
            patches = self.inner(self.pool(pieces), inside)  # (B, P, D)
        known = _keep(patches, numbers, ctx.at("patches"), -(-self.cfg.max_seq_len // Z))  # (B, max_seq_len / Z, D)
        number, row = (ctx.positions + 1) // Z - 1, (ctx.positions + 1) % Z  # each (B, T)
        spread = self.spread(_rows(known, number))  # (B, T, Z, D)
        spread = spread.take_along_dim(row[..., None, None], dim=2).squeeze(2)  # (B, T, D)
        return torch.where((number < 0)[..., None], self.start.to(x.dtype), spread)


@layer("Within")
class Within(LoggingModule):
    """Runs its inner recipe on each patch by itself: (B, T, D) is read as (B x patches, size, D).

    With ahead=false the groups are the patches: a byte encoder, before `Patch`. With ahead=true they are the `size`
    rows that predict a patch, which begin one row earlier: a byte decoder, behind `Patch`. The first patch is
    predicted from no byte at all, for which a learned vector stands. Attention costs T x size instead of T x T.
    The inner recipe must be causal; it counts positions within a patch, and keeps its taps to itself.
    Decode state: D numbers per byte; none of the inner recipe, which runs anew over the patches that bytes are added
    to. Packed documents are refused: a patch could span two.
    Source: Yu et al. 2023, arXiv 2305.07185, section 2.2, the local model (which sees the bytes of its patch only;
    here the byte before a patch takes the place of the padding, but for the first patch); encoder: Hillier et al.
    2024, arXiv 2405.14159, byte-level model (there attention within a patch goes both ways, here it is the inner
    recipe's).
    """

    causal, decodes = True, True

    def __init__(self, cfg: ModelConfig, inner: nn.Module, *, size: int = 4, ahead: bool = False):
        super().__init__()
        _check_size(size)
        self.cfg, self.inner, self.size = cfg, inner, size
        self.ahead = int(ahead and size > 1)  # rows that a group begins earlier; a patch of one byte has nothing before
        self.start = nn.Parameter(0.02 * torch.randn(cfg.dim)) if self.ahead else None

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        _refuse_segments("Within", ctx)
        if ctx.cache is not None:
            return self.step(x, ctx)
        (B, T, D), Z = x.shape, self.size
        if self.ahead:
            x = torch.cat((self.start.to(x.dtype).expand(B, 1, D), x), dim=1)  # (B, 1 + T, D)
        x = F.pad(x, (0, 0, 0, -x.shape[1] % Z))  # the last group is filled up: later rows reach no earlier ones
        out = self.groups(x.unflatten(1, (-1, Z)), ctx)  # (B, P, Z, D)
        return out.flatten(1, 2)[:, self.ahead : self.ahead + T]  # (B, T, D)

    @log_io
    def groups(self, x: Tensor, ctx: Context) -> Tensor:
        """The inner recipe on each group: (B, P, Z, D) -> (B, P, Z, D)"""
        B, P, Z, _ = x.shape
        inside = _child(ctx, self.cfg, torch.arange(Z, device=x.device))
        if ctx.memory is not None:
            inside.memory = ctx.memory.repeat_interleave(P, dim=0)
        return self.inner(x.flatten(0, 1), inside).unflatten(0, (B, P))

    @log_io
    def step(self, x: Tensor, ctx: Context) -> Tensor:
        """`forward` for the bytes that are new, with what came before in the cache: (B, T, D) -> (B, T, D)"""
        T, Z = x.shape[1], self.size
        past = _keep(x, ctx.positions, ctx, self.cfg.max_seq_len)  # (B, max_seq_len, D)
        first = (ctx.seen + self.ahead) // Z * Z - self.ahead  # (B,): where the first group begins that gets a byte
        places = first[:, None] + torch.arange(Z * ((T + Z - 2) // Z + 1), device=x.device)  # (B, P Z)
        rows = _rows(past, places)  # (B, P Z, D); what lies behind the new bytes reaches no earlier row
        if self.ahead:
            rows = torch.where((places < 0)[..., None], self.start.to(x.dtype), rows)
        out = self.groups(rows.unflatten(1, (-1, Z)), ctx).flatten(1, 2)  # (B, P Z, D)
        return _rows(out, ctx.positions - first[:, None])  # (B, T, D)


# ---------------------------------------------------------------- what both need


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size!r} must be a whole number of bytes, at least 1")


def _refuse_segments(name: str, ctx: Context) -> None:
    if ctx.segments is not None:
        raise ValueError(
            f"{name} can't keep the documents of a packed row apart, since a patch could span two of them: "
            "give each document a row of its own (segments=None)"
        )


def _child(ctx: Context, cfg: ModelConfig, positions: Tensor) -> Context:
    """The context of an inner recipe that runs on other positions than the bytes': without decode state or taps."""
    rope = rope_tables(positions, cfg)
    return replace(ctx.at("inner"), positions=positions, rope=rope, cache=None, seen=None, span=0, taps={})


def _keep(x: Tensor, positions: Tensor, ctx: Context, length: int) -> Tensor:
    """Writes x (B, T, D) into the cache at its positions (B, T); returns all that is there, (B, length, D)."""
    if ctx.slot not in ctx.cache:
        ctx.cache[ctx.slot] = x.new_zeros(len(x), length, x.shape[-1])
    state = ctx.cache[ctx.slot]
    state[torch.arange(len(x), device=x.device)[:, None], positions] = x
    return state


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """For each row of the batch what stands at its places (B, ...): (B, S, D) -> (B, ..., D); the nearest beyond."""
    row = torch.arange(len(x), device=x.device).view(-1, *[1] * (places.ndim - 1))
    return x[row, places.clamp(0, x.shape[1] - 1)]
