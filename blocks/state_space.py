"""Selective state spaces: a state that each token decides how much to forget, what to write to and what to read from.

Further letters of the dimension key: W = expand x D, width of the recurrence; N `state`, numbers kept for each of the W
channels; R `rank` of the step size.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blocks.convolution import CausalConv
from blocks.scan import document_starts, keep, recall
from config import ModelConfig
from model import Context, layer, make_context
from tools import LoggingModule, log_io, see_through


def step_sizes(count: int, low: float = 0.001, high: float = 0.1) -> Tensor:
    """Biases (count,) for which softplus gives steps between `low` and `high`, evenly spread on a logarithmic scale.

    Source: Gu & Dao 2023, arXiv 2312.00752, section 3.6.
    """
    dt = torch.empty(count).uniform_(math.log(low), math.log(high)).exp()
    return dt + torch.log(-torch.expm1(-dt))  # softplus solved for its argument


def document_borders(x: Tensor, ctx: Context) -> Tensor | None:
    """`document_starts` of a packed row, (B, T); None for rows of one document each, whose state begins as zeros."""
    return None if ctx.segments is None else document_starts(x, ctx)


# ---------------------------------------------------------------- Mamba


@layer("Mamba")
class Mamba(LoggingModule):
    """Wo(y * silu(Wgate x)), where y is a selective state space over u = silu(conv(Win x)).

    Each channel w of u drives a state h of N numbers. A token sets its own step dt (long: forget and write a lot;
    short: pass me by), its direction of writing b and of reading c:

        dt_t = softplus(Wdt_up Wdt_down u_t + dt_bias)    (W,)    b_t = Wb u_t, c_t = Wc u_t    (N,)
        h_t[w] = exp(dt_t[w] A[w]) * h_(t-1)[w] + dt_t[w] u_t[w] b_t                            (N,)
        y_t[w] = c_t . h_t[w] + skip[w] u_t[w]

    with A = -exp(A_log) < 0, which starts as -1, -2, ..., -N.
    Source: Gu & Dao 2023, arXiv 2312.00752, algorithm 2, figure 3 and section 3.6; as in the published code, b is
    stepped by Euler's rule, dt b, in place of eq. 4's exact one. The paper's matrices for dt, B and C, made in one
    product there, are three here. The scan runs in fp32 at least.
    Decode state: h in fp32 and the convolution's last inputs, W x N + (conv - 1) x W numbers per row, and the same for
    each token of the last call, so that it can be rewound.
    """

    causal, decodes = True, True
    last = "Wo"

    def __init__(self, cfg: ModelConfig, *, state: int = 16, conv: int = 4, expand: float = 2, rank: int | None = None):
        super().__init__()
        self.cfg = cfg
        W, R = int(expand * cfg.dim), math.ceil(cfg.dim / 16) if rank is None else rank
        if min(W, state, R) < 1:
            raise ValueError(f"state={state}, rank={R} and expand={expand} x dim={cfg.dim} must each be at least 1")
        self.Win = nn.Linear(cfg.dim, W, bias=False)
        self.Wgate = nn.Linear(cfg.dim, W, bias=False)
        self.conv = CausalConv(W, conv, bias=True)
        self.Wdt_down = nn.Linear(W, R, bias=False)
        self.Wdt_up = nn.Linear(R, W, bias=False)
        self.dt_bias = nn.Parameter(step_sizes(W))
        self.Wb = nn.Linear(W, state, bias=False)
        self.Wc = nn.Linear(W, state, bias=False)
        # flat, since optimizers take what has two dimensions for a matrix: to be decayed, or orthogonalised by Muon
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(W))  # (W * N,)
        self.skip = nn.Parameter(torch.ones(W))
        self.Wo = nn.Linear(W, cfg.dim, bias=False)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        gate = F.silu(self.Wgate(x))  # (B, T, W)
        u = F.silu(self.conv(self.Win(x), ctx.at("conv")))  # (B, T, W)
        return self.Wo(self.mix(u, ctx) * gate)

    @log_io
    def mix(self, u: Tensor, ctx: Context) -> Tensor:
        """The state space: (B, T, W) -> (B, T, W)"""
        exact = torch.promote_types(u.dtype, torch.float32)
        dt = F.softplus((self.Wdt_up(self.Wdt_down(u)) + self.dt_bias).to(exact))  # (B, T, W)
        b, c = self.Wb(u).to(exact), self.Wc(u).to(exact)  # (B, T, N)
        A = -self.A_log.to(exact).exp().unflatten(0, (u.shape[-1], -1))  # (W, N)
        before = recall(u.new_empty(len(u), 0, *A.shape, dtype=exact), ctx, 1)  # (B, 1, W, N)
        y, h = selective_scan(dt, u.to(exact), A, b, c, before[:, 0], document_borders(u, ctx))
        keep(before, h, ctx)
        return (y + self.skip * u).to(u.dtype)


@log_io
def selective_scan(
    dt: Tensor, u: Tensor, A: Tensor, b: Tensor, c: Tensor, start: Tensor, first: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mamba's recurrence for all t at once: dt and u (B, T, W), A (W, N), b and c (B, T, N) -> y (B, T, W) and all h.

    start: h before the row, (B, W, N); those returned are (B, T, W, N). first: bool (B, T), where a document begins and
    the state is emptied; None: nowhere. See `SelectiveScan`.
    """
    return SelectiveScan.apply(dt, u, A, b, c, start, first)


class SelectiveScan(torch.autograd.Function):
    """The scan in J chunks of L = sqrt(T) tokens: 2 L steps for all chunks at once, and J between the chunks.

    A first round through the chunks finds what each adds to the state and what share of the state it lets through;
    from these follow the states between the chunks, and a second round starts each chunk from there. Only products of
    factors exp(dt A) <= 1 occur, so nothing can overflow, and a factor 0 forgets exactly. The gradient is the same
    recurrence from the end to the start: g_t = dy_t c_t + a_(t+1) g_(t+1), with g_t the gradient of h_t.

    Written out as an autograd function because only a and h, and not each step, are then kept for the backward pass:
    of N times the size of u, they are what costs time and memory here.
    """

    @staticmethod
    def forward(saved, dt, u, A, b, c, start, first):
        T, L = u.shape[1], _chunk_length(u.shape[1])
        a = (dt[..., None] * A).exp_()  # (B, T, W, N)
        if first is not None:
            a.masked_fill_(first[..., None, None], 0.0)
        a, x, b_, c_ = _cut(a, L), _cut(dt * u, L), _cut(b, L), _cut(c, L)  # (B, J, L, W, N), (B, J, L, W), ...
        added, kept = torch.zeros_like(a[:, :, 0]), torch.ones_like(a[:, :, 0])  # (B, J, W, N)
        for i in range(L):
            added.mul_(a[:, :, i]).addcmul_(x[:, :, i, :, None], b_[:, :, i, None])
            kept.mul_(a[:, :, i])
        between = [start]
        for j in range(a.shape[1] - 1):
            between.append(torch.addcmul(added[:, j], kept[:, j], between[-1]))
        state, h, y = torch.stack(between, dim=1), torch.empty_like(a), torch.empty_like(x)
        for i in range(L):
            h[:, :, i] = state.mul_(a[:, :, i]).addcmul_(x[:, :, i, :, None], b_[:, :, i, None])
            y[:, :, i] = (state @ c_[:, :, i, :, None])[..., 0]
        saved.save_for_backward(dt, u, A, b, c, start, a, h, kept)
        saved.set_materialize_grads(False)
        return _join(y, T), _join(h, T)

    @staticmethod
    @once_differentiable
    def backward(saved, dy, dh):
        dt, u, A, b, c, start, a, h, kept = saved.saved_tensors
        T, L = u.shape[1], _chunk_length(u.shape[1])
        dy = _cut(torch.zeros_like(u) if dy is None else dy, L)  # (B, J, L, W)
        dh = None if dh is None else _cut(dh, L)  # (B, J, L, W, N)
        dt_, x, b_, c_ = _cut(dt, L), _cut(dt * u, L), _cut(b, L), _cut(c, L)

        def take_in(g: Tensor, i: int) -> Tensor:
            """Adds what y_i and a later use of h_i say about h_i."""
            g.addcmul_(dy[:, :, i, :, None], c_[:, :, i, None])
            return g if dh is None else g.add_(dh[:, :, i])

        added = torch.zeros_like(kept)  # (B, J, W, N)
        for i in reversed(range(L)):
            take_in(added, i).mul_(a[:, :, i])
        between = [torch.zeros_like(start)]
        for j in reversed(range(1, a.shape[1])):
            between.append(torch.addcmul(added[:, j], kept[:, j], between[-1]))
        g = torch.stack(between[::-1], dim=1)  # (B, J, W, N)
        before = torch.cat((start[:, None], h[:, :-1, -1]), dim=1)  # (B, J, W, N): h before each chunk
        d_dt, dx, db, dc = (torch.empty_like(t) for t in (dt_, x, b_, c_))
        dA = torch.zeros_like(g)
        for i in reversed(range(L)):
            take_in(g, i)
            dx[:, :, i] = (g @ b_[:, :, i, :, None])[..., 0]
            db[:, :, i] = (x[:, :, i, None] @ g)[:, :, 0]
            dc[:, :, i] = (dy[:, :, i, None] @ h[:, :, i])[:, :, 0]
            g.mul_(a[:, :, i])
            d_log_a = g * (h[:, :, i - 1] if i else before)  # a_t = exp(dt_t A) multiplies h_(t-1)
            dA.addcmul_(d_log_a, dt_[:, :, i, :, None])
            d_dt[:, :, i] = d_log_a.mul_(A).sum(-1)
        d_dt, dx, db, dc = (_join(t, T) for t in (d_dt, dx, db, dc))
        return d_dt + dx * u, dx * dt, dA.sum((0, 1)), db, dc, g[:, 0], None


def _chunk_length(T: int) -> int:
    """About the square root of T, for which the steps within and between chunks are fewest."""
    return math.isqrt(max(T - 1, 0)) + 1


@see_through
def _cut(x: Tensor, L: int) -> Tensor:
    """(B, T, ...) -> (B, J, L, ...), with zeros behind the row to fill the last chunk."""
    missing = -x.shape[1] % L
    x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)) if missing else x
    return x.unflatten(1, (-1, L))


@see_through
def _join(x: Tensor, T: int) -> Tensor:
    """(B, J, L, ...) -> (B, T, ...): undoes `_cut`."""
    return x.flatten(1, 2)[:, :T]


# ---------------------------------------------------------------- Mamba-2

CHUNK = 64  # tokens worked on at once as in attention; from chunk to chunk a state is handed on


@layer("Mamba2")
class Mamba2(LoggingModule):
    """Wo(norm(y * silu(Wgate x))), where y is a state space whose channels share one decay in each of H heads.

    With u = silu(conv(Win x)) in H heads of K, b = silu(conv(Wb x)) and c = silu(conv(Wc x)) in G groups of N, for each
    head and its group:

        dt_t = softplus(Wdt x_t + dt_bias)                  a number per head
        h_t = exp(dt_t A) h_(t-1) + dt_t b_t u_t^T          (N, K), with A = -exp(A_log) a number per head
        y_t = h_t^T c_t + skip u_t                          (K,)

    One decay per head makes it a form of attention without softmax, in which c is the query, b the key and u the
    value, and the weight of token j at token i is (c_i . b_j) dt_j exp(sum of dt A from j + 1 to i): see `ssd_chunk`.
    Sizes: N = `state`; H = `heads` of K = W / H channels (default: the config's query heads); G = `groups`.
    Source: Dao & Gu 2024, arXiv 2405.21060, figure 6 (right) and section 7.1; chunks: section 6. Published code has
    one input matrix and one convolution for all. The scan runs in fp32 at least.
    Decode state: h in fp32 and the convolutions' last inputs, W x N + (conv - 1) x (W + 2 G N) numbers per row, and
    what the last call gave to the scan, so that it can be rewound.
    """

    causal, decodes = True, True
    last = "Wo"

    def __init__(
        self,
        cfg: ModelConfig,
        *,
        state: int = 64,
        heads: int | None = None,
        groups: int = 1,
        conv: int = 4,
        expand: float = 2,
    ):
        super().__init__()
        W, H = int(expand * cfg.dim), cfg.num_q_heads if heads is None else heads
        if min(W, state, H, groups) < 1:
            raise ValueError(
                f"state={state}, heads={H}, groups={groups} and expand={expand} x dim={cfg.dim} must each be at least 1"
            )
        if W % H or H % groups:
            raise ValueError(f"heads={H} must divide expand x dim = {W}, and groups={groups} must divide heads={H}")
        self.cfg, self.H, self.G = cfg, H, groups
        self.Win = nn.Linear(cfg.dim, W, bias=False)
        self.Wb = nn.Linear(cfg.dim, groups * state, bias=False)
        self.Wc = nn.Linear(cfg.dim, groups * state, bias=False)
        self.Wdt = nn.Linear(cfg.dim, H, bias=False)
        self.Wgate = nn.Linear(cfg.dim, W, bias=False)
        self.conv_u = CausalConv(W, conv, bias=True)
        self.conv_b = CausalConv(groups * state, conv, bias=True)
        self.conv_c = CausalConv(groups * state, conv, bias=True)
        self.dt_bias = nn.Parameter(step_sizes(H))
        self.A_log = nn.Parameter(torch.empty(H).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(H))
        self.norm_weight = nn.Parameter(torch.ones(W))
        self.Wo = nn.Linear(W, cfg.dim, bias=False)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        u = F.silu(self.conv_u(self.Win(x), ctx.at("conv_u")))  # (B, T, W)
        b = F.silu(self.conv_b(self.Wb(x), ctx.at("conv_b")))  # (B, T, G * N)
        c = F.silu(self.conv_c(self.Wc(x), ctx.at("conv_c")))  # (B, T, G * N)
        y = self.mix(u, b, c, self.Wdt(x), ctx) * F.silu(self.Wgate(x))  # (B, T, W)
        y = y.unflatten(-1, (self.G, -1))  # (B, T, G, W / G)
        y = F.rms_norm(y, y.shape[-1:], eps=self.cfg.norm_eps).flatten(2)  # each group by itself
        return self.Wo(self.norm_weight * y)

    @log_io
    def mix(self, u: Tensor, b: Tensor, c: Tensor, dt: Tensor, ctx: Context) -> Tensor:
        """The state space: u (B, T, W), b and c (B, T, G * N), raw step sizes dt (B, T, H) -> (B, T, W)"""
        G, exact, kind = self.G, torch.promote_types(u.dtype, torch.float32), u.dtype
        dt = F.softplus((dt + self.dt_bias).to(exact))  # (B, T, H)
        log_a = -self.A_log.to(exact).exp() * dt
        dt, log_a = (value.unflatten(-1, (G, -1, 1)) for value in (dt, log_a))  # (B, T, G, R, 1): R heads in a group
        b, c = (value.to(exact).unflatten(-1, (G, 1, -1)) for value in (b, c))  # (B, T, G, 1, N)
        u = u.to(exact).unflatten(-1, (G, self.H // G, -1))  # (B, T, G, R, K)
        start = u.new_zeros(len(u), G, self.H // G, b.shape[-1], u.shape[-1])  # (B, G, R, N, K)
        y = scan_in_chunks(ssd_chunk, (dt * u, log_a, b, c), start, ctx)  # (B, T, G, R, K)
        return (y + self.skip.view(G, -1, 1) * u).flatten(2).to(kind)


@log_io
def ssd_chunk(x: Tensor, log_a: Tensor, b: Tensor, c: Tensor, h: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_(t-1) + b_t x_t^T and y_t = h_t^T c_t for the C tokens of a chunk, by matrix products.

    x (B, C, G, R, K), log_a (B, C, G, R, 1), b and c (B, C, G, 1, N), h before the chunk (B, G, R, N, K) -> y as x,
    h after the chunk. first: see `decays`. Source: Dao & Gu 2024, arXiv 2405.21060, section 6.
    """
    x, log_a, b, c = (value.movedim(1, -2) for value in (x, log_a, b, c))  # (B, G, R, C, ...)
    between, since = decays(log_a[..., 0], first)  # (B, G, R, C, C), (B, G, R, C)
    y = (c @ b.mT * between) @ x + (c @ h) * since[..., None]  # (B, G, R, C, K)
    h = since[..., -1, None, None] * h + b.mT @ (between[..., -1, :, None] * x)  # (B, G, R, N, K)
    return y.movedim(-2, 1), h


# ---------------------------------------------------------------- states that are handed from chunk to chunk


@log_io
def decays(log_a: Tensor, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What decay has left within a chunk: log_a (B, ..., C) -> (B, ..., C, C) and (B, ..., C).

    Entry (i, j) of the one is the share that is left, at token i, of what token j wrote: exp(sum of log_a from j + 1
    to i) for j <= i, else 0. Entry i of the other: the share left of the state before the chunk. Each sum is taken by
    itself, not as a difference of two sums from the chunk's start, in which small terms would drown beside large ones.
    first: bool (B, C), where a document begins and nothing is left of what was before; None: nowhere.
    """
    C = log_a.shape[-1]
    sums = log_a[..., None].expand(*log_a.shape, C).tril(-1).cumsum(-2)  # (B, ..., C, C)
    hidden = torch.ones(C, C, dtype=torch.bool, device=log_a.device).triu(1)
    since = log_a.cumsum(-1)  # (B, ..., C)
    if first is not None:
        document = first.cumsum(-1)  # (B, C): how many documents began in this chunk
        document = document.view(len(first), *[1] * (log_a.ndim - 2), C)  # (B, ..., C)
        hidden = hidden | (document[..., None] != document[..., None, :])
        since = since.masked_fill(document > 0, -math.inf)
    return sums.masked_fill(hidden, -math.inf).exp(), since.exp()


@log_io
def scan_in_chunks(step: Callable, tokens: tuple[Tensor, ...], start: Tensor, ctx: Context) -> Tensor:
    """Runs a recurrence over a row by chunks: tokens, each (B, T, ...), and the first state (B, ...) -> y (B, T, ...).

    `step(*tokens, state, first)` does one chunk and returns its y and the state after it. A token that is zero
    everywhere must leave the state as it is. While decoding, the state before a call and the call's tokens are kept in
    `ctx.cache[ctx.slot]`: a row may be rewound to any of these tokens, and the next call begins by doing those that are
    left once more, which for the usual single token is cheap.
    """
    first = document_borders(tokens[0], ctx)
    if ctx.cache is not None and ctx.slot in ctx.cache:
        began, start, last = ctx.cache[ctx.slot]
        left = tokens_left(ctx, began, last[0].shape[1])  # (B, tokens of the last call)
        last = [value * left.view(*left.shape, *[1] * (value.ndim - 2)) for value in last]
        start = _through_chunks(step, last, start, None)[1]
    if ctx.cache is not None:
        ctx.cache[ctx.slot] = (ctx.positions[:, 0], start, tokens)
    return _through_chunks(step, tokens, start, first)[0]


def tokens_left(ctx: Context, began: Tensor, count: int) -> Tensor:
    """Which of the last call's `count` tokens, from positions `began` (B,) on, were not rewound: bool (B, count).

    Raises ValueError where a row was rewound to before them: that state is gone.
    """
    left = ctx.positions[:, 0] - began  # (B,)
    if not torch.compiler.is_compiling() and left.device.type == "cpu" and left.min() < 0:
        raise ValueError(
            f"the cache was rewound by more than the last call's {count} tokens, and a recurrent block has kept no "
            "state from before: start again with a new context"
        )
    return torch.arange(count, device=left.device) < left[:, None]


@see_through
def _through_chunks(step: Callable, tokens, state: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    parts = []
    for i in range(0, tokens[0].shape[1], CHUNK):
        now = slice(i, i + CHUNK)
        y, state = step(*(value[:, now] for value in tokens), state, None if first is None else first[:, now])
        parts.append(y)
    return torch.cat(parts, dim=1), state
