"""Attention's variants: each overrides a step of `MQA` in model.py, or is a page of its own where little is shared.

    SoftCapAttn        scores squashed into (-cap, cap)                  Gemma 2
    SinkAttn           a learned share of the weights goes nowhere       GPT-OSS
    GatedAttn          a gate on what attention found                    Qwen3-Next
    FlatNormAttn       queries and keys normalised over all heads        OLMo 2
    ValueResidualAttn  the first layer's values come back in every layer
    DiffAttn           the difference of two attention patterns          DiffLlama
    CrossAttn          looks at `ctx.memory` in place of the tokens      T5
    MLA                keys and values from one small latent             DeepSeek-V2

All but the last two take `window` and `bias` as `MQA` does, and keep its decode state.
Dimension key: as in model.py, and C  width of the latent, R  channels that RoPE turns.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from model import MQA, Context, RMSNorm, attend, layer, make_context, rotate
from tools import LoggingModule, log_io


@layer("SoftCapAttn")
class SoftCapAttn(MQA):
    """Attention with scores cap * tanh(score / cap): none can run away, so that no weight gets stuck at 0 or 1.

    Source: Gemma Team 2024, arXiv 2408.00118, section 2, with cap = 50; first in Bello et al. 2016, arXiv 1611.09940.
    """

    def __init__(self, cfg: ModelConfig, *, cap: float = 50.0, window: int | None = None, bias: bool = False):
        super().__init__(cfg, window=window, bias=bias)
        if cap <= 0:
            raise ValueError(f"cap={cap} must be positive: scores stay between -cap and cap")
        self.cap = cap

    def view(self, ctx: Context) -> Context:
        return replace(super().view(ctx), weigh=self.weigh)

    def weigh(self, scores: Tensor, bias: Tensor) -> Tensor:
        """Scores and what is added to them, (B, G, H/G, T, S), to weights."""
        return (self.cap * torch.tanh(scores / self.cap) + bias).softmax(dim=-1)


@layer("SinkAttn")
class SinkAttn(MQA):
    """Attention that may look away: w_j = exp(s_j) / (exp(z_h) + sum_i exp(s_i)), with one learned z_h for each head.

    The sink takes weight and gives no value; without one, heads that find nothing put their weight on the first token.
    Source: as in GPT-OSS's published code; Xiao et al. 2023, arXiv 2309.17453, section 3, who observed the sinks.
    z = 0, the start, is their eq. 2.
    """

    def __init__(self, cfg: ModelConfig, *, window: int | None = None, bias: bool = False):
        super().__init__(cfg, window=window, bias=bias)
        self.sinks = nn.Parameter(torch.zeros(cfg.num_q_heads))

    def view(self, ctx: Context) -> Context:
        return replace(super().view(ctx), weigh=self.weigh)

    def weigh(self, scores: Tensor, bias: Tensor) -> Tensor:
        """Scores and what is added to them, (B, G, H/G, T, S), to weights whose sum is below 1."""
        sinks = self.sinks.to(scores.dtype).view(*scores.shape[1:3], 1, 1)  # (G, H/G, 1, 1)
        sinks = sinks.expand(*scores.shape[:-1], 1)  # one more key for each query, whose weight is then dropped
        return torch.cat((scores + bias, sinks), dim=-1).softmax(dim=-1)[..., :-1]


@layer("GatedAttn")
class GatedAttn(MQA):
    """Wo(attention(x) * sigmoid(Wgate x)), channel by channel: a position can refuse what its heads bring.

    Source: Qiu et al. 2025, arXiv 2505.06708, eq. 5 (their best place, G1); as in Qwen3-Next.
    """

    def __init__(self, cfg: ModelConfig, *, window: int | None = None, bias: bool = False):
        super().__init__(cfg, window=window, bias=bias)
        self.Wgate = nn.Linear(cfg.dim, cfg.num_q_heads * cfg.head_dim, bias=bias)

    def finish(self, out: Tensor, x: Tensor) -> Tensor:
        gate = self.Wgate(x).unflatten(-1, (-1, self.cfg.head_dim))  # (B, T, H, K)
        return out * gate.transpose(1, 2).sigmoid()  # (B, H, T, K)


class FlatRMSNorm(RMSNorm):
    """RMSNorm over the channels of all heads at once."""

    @log_io
    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, K) -> (B, T, H, K)"""
        return super().forward(x.flatten(-2)).unflatten(-1, x.shape[-2:])


@layer("FlatNormAttn")
class FlatNormAttn(MQA):
    """Attention with queries and keys RMS-normalised before RoPE, each over its H x K (G x K) channels together.

    The heads keep their sizes relative to one another, which `qk_norm` (each head by itself) takes from them.
    Source: OLMo Team 2024, arXiv 2501.00656, section 2.1 (after Dehghani et al. 2023, arXiv 2302.05442, section 2).
    """

    def __init__(self, cfg: ModelConfig, *, window: int | None = None, bias: bool = False):
        super().__init__(cfg, window=window, bias=bias)
        self.q_norm = FlatRMSNorm(cfg.num_q_heads * cfg.head_dim, eps=cfg.norm_eps)
        self.k_norm = FlatRMSNorm(cfg.num_kv_heads * cfg.head_dim, eps=cfg.norm_eps)


@layer("ValueResidualAttn")
class ValueResidualAttn(MQA):
    """Attention over values a * v + b * v1, where v1 are the values of the first such layer: a short cut to the words.

    a and b are learned in each layer, 1/2 at the start. In the first layer v1 is v.
    Source: Zhou et al. 2024, arXiv 2410.17897, section 3 (ResFormer with learnable weights). Deviates in the first
    layer, which has an a and b too: a learned scale of v1, 1 at the start.
    """

    KEY = "first values"  # in ctx.taps; no recipe can write a tap of this name

    def __init__(self, cfg: ModelConfig, *, window: int | None = None, bias: bool = False):
        super().__init__(cfg, window=window, bias=bias)
        self.mix = nn.Parameter(torch.full((2,), 0.5))

    @log_io
    def project(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and mixed values: (B, T, D) -> (B, H, T, K), (B, G, T, K), (B, G, T, K)"""
        q, k, v = super().project(x, ctx)
        owner, first = ctx.taps.get(self.KEY, (ctx.slot, v))
        if owner == ctx.slot:  # this is the first layer, perhaps in a later call with the same context
            first = v
            ctx.taps[self.KEY] = (ctx.slot, v)
        return q, k, self.mix[0] * v + self.mix[1] * first


@layer("DiffAttn")
class DiffAttn(MQA):
    """(softmax(q1 k1) - lambda * softmax(q2 k2)) v: what both patterns look at, noise above all, cancels.

    Heads h and h + H/2 are a pair that shares values of width 2K. lambda = exp(a1 . b1) - exp(a2 . b2) + start with
    learned a, b (K,); each pair's output is RMS-normalised and multiplied by 1 - start. The paper takes start =
    0.8 - 0.6 exp(-0.3 l) in layer l = 0, 1, ..., or 0.8 throughout: `DiffAttn(start=cyc(0.2,0.36,0.47,0.56))`.
    Source: Ye et al. 2024, arXiv 2410.05258, eq. 1 to 3; pairs of halves and a norm without weights as in DiffLlama.
    """

    def __init__(self, cfg: ModelConfig, *, start: float = 0.8, window: int | None = None, bias: bool = False):
        super().__init__(cfg, window=window, bias=bias)
        if cfg.num_kv_heads % 2:
            raise ValueError(f"num_kv_heads={cfg.num_kv_heads} must be even for DiffAttn, whose heads work in pairs")
        if not 0 <= start < 1:
            raise ValueError(f"start={start} must be in [0, 1): the share of the second pattern taken off at the start")
        self.start = start
        self.lambdas = nn.Parameter(0.1 * torch.randn(2, 2, cfg.head_dim))  # (a1, b1), (a2, b2)
        self.pair_norm = RMSNorm(2 * cfg.head_dim, eps=cfg.norm_eps, affine=False)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = self.view(make_context(self.cfg, x) if ctx is None else ctx)
        q, k, v = self.project(x, ctx)
        if ctx.cache is not None:
            k, v = self.remember(k, v, ctx)  # (B, G, S, K)
        v = torch.cat(v.chunk(2, dim=1), dim=-1).repeat(1, 2, 1, 1)  # (B, G, S, 2K)
        one, two = attend(q, k, v, ctx).chunk(2, dim=1)  # each (B, H/2, T, 2K)
        plus, minus = self.lambdas.prod(dim=1).sum(dim=-1).exp()
        out = one - (plus - minus + self.start) * two  # (B, H/2, T, 2K)
        out = (1 - self.start) * self.pair_norm(out)
        return self.Wo(out.transpose(1, 2).flatten(2))  # (B, T, D)


@layer("CrossAttn")
class CrossAttn(MQA):
    """Attention from the tokens to a memory, `ctx.memory` (B, S, D): all of it, without positions.

    Set `ctx.memory` before the forward pass. While decoding, its keys and values are worked out at the first call.
    Packed documents of a row share the row's memory.
    Decode state: 2 x G x K x S numbers per row, for a memory of S vectors.
    Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.2.3.
    """

    needs = ("memory",)

    def __init__(self, cfg: ModelConfig, *, bias: bool = False):
        super().__init__(cfg, bias=bias)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        if ctx is None or ctx.memory is None:
            raise ValueError("ctx.memory=None: CrossAttn looks at a memory (B, S, D); set ctx.memory before the call")
        q = self.q_norm(self.Wq(x).unflatten(-1, (-1, self.cfg.head_dim))).transpose(1, 2)  # (B, H, T, K)
        k, v = self.recall(ctx)
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])  # (B, H, T, K)
        return self.Wo(out.transpose(1, 2).flatten(2))  # (B, T, D)

    def recall(self, ctx: Context) -> Tensor:
        """The memory's keys and values, stacked: (2, B, G, S, K)."""
        if ctx.cache is not None and ctx.slot in ctx.cache:
            return ctx.cache[ctx.slot]
        k = self.k_norm(self.Wk(ctx.memory).unflatten(-1, (-1, self.cfg.head_dim)))  # (B, S, G, K)
        v = self.Wv(ctx.memory).unflatten(-1, (-1, self.cfg.head_dim))  # (B, S, G, K)
        both = torch.stack((k, v)).transpose(2, 3)  # (2, B, G, S, K)
        if ctx.cache is not None:
            ctx.cache[ctx.slot] = both
        return both


@layer("MLA")
class MLA(LoggingModule):
    """Multi-head latent attention: each token keeps one latent c (C,), from which every head makes its key and value.

    c = norm(Wdown x);  k_h = [Wkey_h c ; r],  v_h = Wvalue_h c,  q_h = [q_h^c ; rope(q_h^r)], where the key part
    r = rope(Wdown' x) (R,) is common to all heads: RoPE cannot pass through Wkey. While decoding, Wkey and Wvalue
    are moved to the side of the queries and of the output (q . (Wkey c) = (Wkey^T q) . c), so that the heads attend to
    the latents themselves, as to one shared head of width C + R.
    `latent`: C, by default 2 K; `q_latent`: the width of a latent for the queries, none by default. R is the config's
    `rope_dim`, by default K; heads have K channels beside it. `num_kv_heads` and `qk_norm` have no say.
    Decode state: C + R numbers per token.
    Source: DeepSeek-AI 2024, arXiv 2405.04434, section 2.1, eq. 9 to 19.
    """

    causal, decodes = True, True
    last = "Wo"

    def __init__(self, cfg: ModelConfig, *, latent: int | None = None, q_latent: int | None = None):
        super().__init__()
        for name, width in (("latent", latent), ("q_latent", q_latent)):
            if width is not None and width < 1:
                raise ValueError(f"{name}={width} must be at least 1, or None for the default")
        H, K = cfg.num_q_heads, cfg.head_dim
        self.cfg, self.latent, self.rope_dim = cfg, latent or 2 * K, cfg.rope_dim or K
        self.Wq_down = nn.Linear(cfg.dim, q_latent, bias=False) if q_latent else nn.Identity()
        self.q_norm = RMSNorm(q_latent, eps=cfg.norm_eps) if q_latent else nn.Identity()
        self.Wq = nn.Linear(q_latent or cfg.dim, H * (K + self.rope_dim), bias=False)
        self.Wdown = nn.Linear(cfg.dim, self.latent + self.rope_dim, bias=False)
        self.norm = RMSNorm(self.latent, eps=cfg.norm_eps)
        self.Wkey = nn.Linear(self.latent, H * K, bias=False)
        self.Wvalue = nn.Linear(self.latent, H * K, bias=False)
        self.Wo = nn.Linear(H * K, cfg.dim, bias=False)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        q, latent, shared = self.project(x, ctx)
        attend_to = self.attend_to_heads if ctx.cache is None else self.attend_to_latents
        out = attend_to(q, latent, shared, ctx)  # (B, H, T, K)
        return self.Wo(out.transpose(1, 2).flatten(2))  # (B, T, D)

    @log_io
    def project(self, x: Tensor, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, latents and the keys' common part: (B, T, D) -> (B, H, T, K+R), (B, T, C), (B, T, R)"""
        H, K, R = self.cfg.num_q_heads, self.cfg.head_dim, self.rope_dim
        q = self.Wq(self.q_norm(self.Wq_down(x))).unflatten(-1, (H, K + R))  # (B, T, H, K+R)
        latent, shared = self.Wdown(x).split((self.latent, R), dim=-1)  # (B, T, C), (B, T, R)
        if ctx.rope is not None:
            interleaved = self.cfg.positions == "rope_interleaved"
            q = torch.cat((q[..., :K], rotate(q[..., K:], ctx.rope, interleaved)), dim=-1)  # (B, T, H, K+R)
            shared = rotate(shared[:, :, None], ctx.rope, interleaved)[:, :, 0]  # (B, T, R)
        return q.transpose(1, 2), self.norm(latent), shared

    @log_io
    def attend_to_heads(self, q: Tensor, latent: Tensor, shared: Tensor, ctx: Context) -> Tensor:
        """(B, H, T, K+R), (B, T, C), (B, T, R) -> (B, H, T, K)"""
        H = self.cfg.num_q_heads
        k = self.Wkey(latent).unflatten(-1, (H, -1))  # (B, T, H, K)
        v = self.Wvalue(latent).unflatten(-1, (H, -1))  # (B, T, H, K)
        k = torch.cat((k, shared[:, :, None].expand(-1, -1, H, -1)), dim=-1)  # (B, T, H, K+R)
        return attend(q, k.transpose(1, 2), v.transpose(1, 2), ctx)

    @log_io
    def attend_to_latents(self, q: Tensor, latent: Tensor, shared: Tensor, ctx: Context) -> Tensor:
        """(B, H, T, K+R), (B, T, C), (B, T, R) -> (B, H, T, K)"""
        H, K, C, R = self.cfg.num_q_heads, self.cfg.head_dim, self.latent, self.rope_dim
        keys = self.remember(torch.cat((latent, shared), dim=-1), ctx)[:, None]  # (B, 1, S, C+R)
        q_latent = q[..., :K] @ self.Wkey.weight.view(H, K, C)  # (B, H, T, C)
        q = torch.cat((q_latent, q[..., K:]), dim=-1) * ((C + R) / (K + R)) ** 0.5  # attend divides by sqrt(C + R)
        out = attend(q, keys, keys[..., :C], ctx)  # (B, H, T, C)
        return out @ self.Wvalue.weight.view(H, K, C).transpose(1, 2)

    @log_io
    def remember(self, new: Tensor, ctx: Context) -> Tensor:
        """Writes new latents (B, T, C+R) into the cache at their positions; returns all, (B, S, C+R)."""
        B, T, width = new.shape
        if ctx.slot not in ctx.cache:
            ctx.cache[ctx.slot] = new.new_zeros(B, self.cfg.max_seq_len, width)
        state = ctx.cache[ctx.slot]
        state[torch.arange(B, device=new.device)[:, None], ctx.positions] = new
        return state[:, : ctx.span + T]
