"""Griffin's recurrent block: a gated linear recurrence, whose state has one size however long the text is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocks.convolution import CausalConv
from blocks.scan import document_starts, keep, linear_scan, recall
from config import ModelConfig
from model import Context, layer, make_context
from tools import LoggingModule, log_io


@layer("RGLRU")
class RGLRU(LoggingModule):
    """Wo(gelu(Wgate x) * lru(conv(Win x))): one branch remembers, the other decides what of it comes out.

    Key: W width of the recurrence, `width` (default: D); M = `blocks`, of W/M channels each.
    Source: De et al. 2024, arXiv 2402.19427, figure 2c and section 2.3; with biases, as in RecurrentGemma's published
    code. There too `width` is D and `blocks` H; the paper's width is about 4/3 D.
    Decode state: h in fp32 and the convolution's last inputs, W + (conv - 1) x W numbers per row.
    """

    causal, decodes = True, True
    last = "Wo"

    def __init__(self, cfg: ModelConfig, *, width: int | None = None, conv: int = 4, blocks: int | None = None):
        super().__init__()
        self.cfg = cfg
        W = cfg.dim if width is None else width
        self.Wgate = nn.Linear(cfg.dim, W)
        self.Win = nn.Linear(cfg.dim, W)
        self.conv = CausalConv(W, conv, bias=True)
        self.lru = LRU(W, cfg.num_q_heads if blocks is None else blocks)
        self.Wo = nn.Linear(W, cfg.dim)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        gate = F.gelu(self.Wgate(x), approximate="tanh")  # (B, T, W)
        u = self.conv(self.Win(x), ctx.at("conv"))  # (B, T, W)
        h = self.lru(u, ctx.at("lru"))  # (B, T, W)
        return self.Wo(gate * h)


class LRU(LoggingModule):
    """The real-gated linear recurrent unit: each channel of the state keeps the share a_t of itself.

        r_t = sigmoid(Wr u_t + br)                                      how much to forget          (eq. 1)
        i_t = sigmoid(Wi u_t + bi)                                      how much to take in         (eq. 2)
        a_t = a^(c r_t), a = sigmoid(-decay) = exp(-softplus(decay))    the share that is kept      (eq. 3)
        h_t = a_t * h_(t-1) + sqrt(1 - a_t^2) * (i_t * u_t)             h keeps the length of u     (eq. 4)

    with c = 8. Wr and Wi are block-diagonal: `blocks` groups of channels that don't see one another. `decay` starts so
    that a^c lies between 0.9 and 0.999.
    Source: De et al. 2024, arXiv 2402.19427, section 2.4; `decay` is the paper's -Lambda. As in RecurrentGemma's
    published code, the first token of a document enters whole: i_t * u_t without the root, for nothing is kept.
    The scan runs in fp32 at least.
    """

    c = 8.0

    def __init__(self, width: int, blocks: int):
        super().__init__()
        if blocks < 1 or width % blocks:
            fits = [n for n in range(1, width + 1) if width % n == 0]
            raise ValueError(f"blocks={blocks} must divide width={width}, for groups of one size; choose from {fits}")
        size = width // blocks
        self.Wr = nn.Parameter(torch.randn(blocks, size, size) * size**-0.5)
        self.Wi = nn.Parameter(torch.randn(blocks, size, size) * size**-0.5)
        self.br = nn.Parameter(torch.zeros(width))
        self.bi = nn.Parameter(torch.zeros(width))
        kept = torch.empty(width).uniform_(0.9, 0.999)  # a^c = exp(-c softplus(decay)), solved for decay
        self.decay = nn.Parameter(torch.expm1(-kept.log() / self.c).log())

    @log_io
    def forward(self, u: Tensor, ctx: Context) -> Tensor:
        """(B, T, W) -> (B, T, W)"""
        groups = u.unflatten(-1, (len(self.Wr), -1))  # (B, T, M, W/M)
        r = torch.sigmoid(torch.einsum("btni,nij->btnj", groups, self.Wr).flatten(2) + self.br)  # (B, T, W)
        i = torch.sigmoid(torch.einsum("btni,nij->btnj", groups, self.Wi).flatten(2) + self.bi)  # (B, T, W)
        exact = torch.promote_types(u.dtype, torch.float32)
        log_a = -self.c * F.softplus(self.decay.to(exact)) * r.to(exact)
        first = document_starts(u, ctx)[..., None]  # (B, T, 1) or (1, T, 1)
        # 1 - a^2 without cancellation where a is almost 1; the floor keeps the root's slope finite
        root = (-torch.expm1(2 * log_a)).clamp(min=1e-12).sqrt().masked_fill(first, 1.0)
        a = log_a.exp().masked_fill(first, 0.0)
        before = recall(a, ctx, 1)  # (B, 1, W)
        h = linear_scan(a, root * (i * u).to(exact), before[:, 0])
        keep(before, h, ctx)
        return h.to(u.dtype)
