"""Mixers that look back a few tokens only: a short convolution, and RWKV's mix of a token with the one before it."""

import torch
from torch import Tensor, nn

from blocks.scan import earlier
from config import ModelConfig
from model import Context, layer, make_context
from tools import LoggingModule, log_io


class CausalConv(LoggingModule):
    """y_t = sum over k < width of w_k * x_(t-k) + b: each channel is filtered along T by itself.

    The weight has the layout of `nn.Conv1d`, (C, 1, width), whose last entry multiplies x_t.
    Decode state: the last width - 1 inputs, (width - 1) x C numbers per row.
    """

    def __init__(self, channels: int, width: int, *, bias: bool):
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width} must be at least 1: it counts the tokens that are mixed")
        self.width = width
        self.weight = nn.Parameter(torch.randn(channels, 1, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    @log_io
    def forward(self, x: Tensor, ctx: Context) -> Tensor:
        """(B, T, C) -> (B, T, C)"""
        taps = self.weight[:, 0].flip(-1).unbind(-1)  # w_0, w_1, ..., each (C,)
        y = sum(w * value for w, value in zip(taps, earlier(x, ctx, self.width), strict=True))
        return y if self.bias is None else y + self.bias


@layer("ShortConv")
class ShortConv(LoggingModule):
    """y_t = sum over k < width of w_k * x_(t-k) (+ b): a causal depthwise convolution as a mixer.

    It mixes positions, not channels: `Norm->ShortConv->+` beside an MLP, or `Norm->ShortConv->Attn->+` in front of
    another mixer. Its weights start random, at the scale that keeps a vector's length; no last matrix starts at zero.
    With `residual`, x itself is added and the weights start at zero: the block in front of which it stands sees at
    first what it would see without, and learns to look at the last few tokens too.
    Source: the convolution alone of those in De et al. 2024, arXiv 2402.19427, section 2.3, and Gu & Dao 2023, arXiv
    2312.00752, section 3.4; with `residual`, in front of attention and MLP, the "Canon layers" A and C of Allen-Zhu
    2025, arXiv 2512.17351.
    Decode state: the last width - 1 inputs, (width - 1) x D numbers per row.
    """

    causal, decodes = True, True

    def __init__(self, cfg: ModelConfig, *, width: int = 4, bias: bool = False, residual: bool = False):
        super().__init__()
        self.cfg, self.residual = cfg, residual
        self.conv = CausalConv(cfg.dim, width, bias=bias)
        if residual:
            nn.init.zeros_(self.conv.weight)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        y = self.conv(x, make_context(self.cfg, x) if ctx is None else ctx)
        return x + y if self.residual else y


@layer("TokenShift")
class TokenShift(LoggingModule):
    """y_t = mu * x_t + (1 - mu) * x_(t-1), with a learned mu for each channel: some channels come one token late.

    mu starts as a ramp over the channels, (i / D)^power; `TokenShift(power=lin(1,0))` shifts less from layer to layer.
    Source: Peng et al. 2023, arXiv 2305.13048, eq. 11, where r, k and v have a mix of their own; here one for all that
    follows. The ramp is that of the paper's appendix on initialisation.
    Decode state: the last input, D numbers per row.
    """

    causal, decodes = True, True

    def __init__(self, cfg: ModelConfig, *, power: float = 1.0):
        super().__init__()
        self.cfg = cfg
        self.mu = nn.Parameter((torch.arange(cfg.dim) / cfg.dim) ** power)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        now, before = earlier(x, make_context(self.cfg, x) if ctx is None else ctx, 2)
        return self.mu * now + (1 - self.mu) * before
