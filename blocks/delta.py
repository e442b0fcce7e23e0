"""Linear attention with an eraser: a state from keys to values in which a token corrects what stands under its key.

Further letters of the dimension key: G key heads, each for R = H/G of the H value heads; P width of a value.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.convolution import CausalConv
from blocks.state_space import decays, scan_in_chunks, step_sizes
from config import ModelConfig
from model import Context, RMSNorm, layer, make_context
from tools import LoggingModule, log_io


@layer("GatedDeltaNet")
class GatedDeltaNet(LoggingModule):
    """Wo(norm(y) * silu(Wgate x)), where y is what a query reads from a memory S of keys and values.

    With q, k and v = silu(conv(Wq x)), silu(conv(Wk x)), silu(conv(Wv x)), q and k of length 1, in each head:

        a_t = exp(-exp(A_log) softplus(Wa x_t + dt_bias)), b_t = sigmoid(Wb x_t)     how much stays, how much is written
        S_t = a_t S_(t-1) + k_t d_t^T, with d_t = b_t (v_t - a_t S_(t-1)^T k_t)      (K, P)
        y_t = S_t^T q_t / sqrt(K)                                                    (P,)

    What is written, d_t, is the new value less what the memory already holds under that key: with b = 1 the old value
    is replaced, where Mamba-2 and plain linear attention would add to it.
    Sizes: H = `heads` (default: the config's query heads); G = `key_heads` (default: H); K = `key_dim` (default: the
    config's head_dim); P = expand x K.
    Source: Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464, eq. 10 and figure 1; S stands transposed there. As in
    Qwen3-Next's published code, key heads may be fewer and queries are divided by sqrt(K). The scan runs in fp32 at
    least.
    Decode state: S in fp32 and the convolutions' last inputs, H x K x P + (conv - 1) x (2 G K + H P) numbers per row,
    and what the last call gave to the scan, so that it can be rewound.
    """

    causal, decodes = True, True
    last = "Wo"

    def __init__(
        self,
        cfg: ModelConfig,
        *,
        heads: int | None = None,
        key_heads: int | None = None,
        key_dim: int | None = None,
        expand: float = 2,
        conv: int = 4,
    ):
        super().__init__()
        H = cfg.num_q_heads if heads is None else heads
        G = H if key_heads is None else key_heads
        K = cfg.head_dim if key_dim is None else key_dim
        P = int(expand * K)
        if min(H, G, K, P) < 1 or H % G:
            raise ValueError(
                f"heads={H}, key_heads={G}, key_dim={K} and expand x key_dim={P} must be at least 1, and key_heads "
                "must divide heads, so that each serves equally many"
            )
        self.cfg, self.H, self.G = cfg, H, G
        self.Wq = nn.Linear(cfg.dim, G * K, bias=False)
        self.Wk = nn.Linear(cfg.dim, G * K, bias=False)
        self.Wv = nn.Linear(cfg.dim, H * P, bias=False)
        self.Wa = nn.Linear(cfg.dim, H, bias=False)
        self.Wb = nn.Linear(cfg.dim, H, bias=False)
        self.Wgate = nn.Linear(cfg.dim, H * P, bias=False)
        self.conv_q = CausalConv(G * K, conv, bias=False)
        self.conv_k = CausalConv(G * K, conv, bias=False)
        self.conv_v = CausalConv(H * P, conv, bias=False)
        self.A_log = nn.Parameter(torch.empty(H).uniform_(1, 16).log())
        self.dt_bias = nn.Parameter(step_sizes(H))
        self.norm = RMSNorm(P, eps=cfg.norm_eps)
        self.Wo = nn.Linear(H * P, cfg.dim, bias=False)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        q = F.silu(self.conv_q(self.Wq(x), ctx.at("conv_q")))  # (B, T, G * K)
        k = F.silu(self.conv_k(self.Wk(x), ctx.at("conv_k")))  # (B, T, G * K)
        v = F.silu(self.conv_v(self.Wv(x), ctx.at("conv_v")))  # (B, T, H * P)
        y = self.norm(self.mix(q, k, v, self.Wa(x), self.Wb(x), ctx))  # (B, T, H, P)
        return self.Wo(y.flatten(2) * F.silu(self.Wgate(x)))

    @log_io
    def mix(self, q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, ctx: Context) -> Tensor:
        """The memory: q, k (B, T, G * K), v (B, T, H * P), raw decay a and strength b (B, T, H) -> (B, T, H, P)"""
        G, exact, kind = self.G, torch.promote_types(v.dtype, torch.float32), v.dtype
        log_a = -self.A_log.to(exact).exp() * F.softplus((a + self.dt_bias).to(exact))  # (B, T, H)
        log_a, b = (value.unflatten(-1, (G, -1, 1)) for value in (log_a, b.to(exact).sigmoid()))  # (B, T, G, R, 1)
        q, k = (unit_length(value.to(exact).unflatten(-1, (G, 1, -1))) for value in (q, k))  # (B, T, G, 1, K)
        v = v.to(exact).unflatten(-1, (G, self.H // G, -1))  # (B, T, G, R, P)
        start = v.new_zeros(len(v), G, self.H // G, k.shape[-1], v.shape[-1])  # (B, G, R, K, P)
        y = scan_in_chunks(delta_chunk, (q * q.shape[-1] ** -0.5, k, v, log_a, b), start, ctx)  # (B, T, G, R, P)
        return y.flatten(2, 3).to(kind)


@log_io
def delta_chunk(
    q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, b: Tensor, S: Tensor, first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The C tokens of a chunk by matrix products: y (B, C, G, R, P), and S after it, from S before, (B, G, R, K, P).

    q and k (B, C, G, 1, K), v (B, C, G, R, P), log_a and b (B, C, G, R, 1). first: see `decays`.

    S before token i is since_i S plus the earlier tokens' k_j d_j^T, each with what decay has left of it, so

        d_i + b_i sum over j < i of left_ij (k_i . k_j) d_j = b_i (v_i - since_i S^T k_i),

    a triangular system, solved for all d at once; then what remains is attention without softmax, over values d.
    Source: Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464, section 3.3. The paper solves for two matrices that don't
    need S, so that chunks can be worked on side by side; here S is known, and one system is enough.
    """
    q, k, v, log_a, b = (value.movedim(1, -2) for value in (q, k, v, log_a, b))  # (B, G, R, C, ...)
    left, since = decays(log_a[..., 0], first)  # (B, G, R, C, C), (B, G, R, C)
    since = since[..., None]
    system = b * left * (k @ k.mT)  # (B, G, R, C, C); only what is below the diagonal counts
    d = torch.linalg.solve_triangular(system, b * (v - since * (k @ S)), upper=False, unitriangular=True)
    y = since * (q @ S) + (left * (q @ k.mT)) @ d  # (B, G, R, C, P)
    S = since[..., -1:, :] * S + k.mT @ (left[..., -1, :, None] * d)  # (B, G, R, K, P)
    return y.movedim(-2, 1), S


def unit_length(x: Tensor) -> Tensor:
    """x / |x| along the last dimension, and 0 for 0: (..., K) -> (..., K)"""
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
