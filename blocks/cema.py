"""Megalodon's moving average: each channel is smoothed by a bank of damped oscillations."""

import math

import torch
from torch import Tensor, nn

from blocks.scan import document_starts, keep, linear_scan, recall
from config import ModelConfig
from model import Context, layer, make_context
from tools import LoggingModule, log_io


@layer("CEMA")
class CEMA(LoggingModule):
    """Complex exponential moving average: N = `state` fading averages of each channel d, mixed to one number.

        h_t[d,n] = q[d,n] h_(t-1)[d,n] + alpha[d,n] x_t[d]         q = (1 - alpha delta) exp(i angle)
        y_t[d]   = Re(sum over n of gamma[d,n] h_t[d,n]) / sqrt(N) + omega[d] x_t[d]

    alpha and delta lie between 0 and 1, as sigmoids of what is learned. |q| < 1 lets the past fade; its angle lets it
    swing, so that an average may look at, say, every third token. The angles of a channel are the first N multiples of
    one: angle[d,n] = sigmoid(theta[d]) 2 pi n / N, for n = 1, ..., N.

    q does not depend on the text, so that the whole is a convolution with a kernel as long as the row. Where rows are
    whole it is computed as one, by Fourier transforms (`convolve`). Decoding and packed rows take the recurrence, which
    is slower but can go on from a state and stop at a document's end (`scan`). Both run in fp32 at least.

    It mixes positions, not channels, and its weights start random: `Norm->CEMA->Attn->+`, or `Norm->CEMA->+`.
    Source: Ma et al. 2024, arXiv 2404.08801, section 3.1, with the parameters of its published code: there x is not
    turned by the angle as it enters nor multiplied by beta, both of which gamma can make up for, and omega is added.
    Decode state: h, 2 x D x N numbers per row.
    """

    causal, decodes = True, True

    def __init__(self, cfg: ModelConfig, *, state: int = 16):
        super().__init__()
        if state < 1:
            raise ValueError(f"state={state} must be at least 1: it counts the averages of a channel")
        self.cfg = cfg
        D, N = cfg.dim, state
        # flat, since optimizers take what has two dimensions for a matrix: to be decayed, or orthogonalised by Muon
        self.alpha = nn.Parameter(torch.randn(D * N) * 0.2)
        self.delta = nn.Parameter(torch.randn(D * N) * 0.2)
        self.gamma_real = nn.Parameter(torch.randn(D * N))
        self.gamma_imag = nn.Parameter(torch.zeros(D * N))
        turn = (D + 1.0) ** (-(torch.randperm(D) + 1) / D)  # from almost 1 down to 1 / (D + 1), in any order
        self.theta = nn.Parameter(torch.logit(turn))
        self.omega = nn.Parameter(nn.init.trunc_normal_(torch.empty(D), std=0.25, a=-1.0, b=1.0))

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        whole = ctx.cache is None and ctx.segments is None
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        y = self.convolve(exact) if whole else self.scan(exact, ctx)
        return y.to(x.dtype) + self.omega * x

    @log_io
    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """alpha, |q|, the angle of q, and gamma's two parts over sqrt(N), each (D, N) in the type of x."""
        D, N = len(self.theta), len(self.alpha) // len(self.theta)
        flat = (self.alpha, self.delta, self.gamma_real, self.gamma_imag)
        alpha, delta, real, imag = (p.to(x.dtype).view(D, N) for p in flat)
        alpha = alpha.sigmoid()
        fade = (1 - alpha * delta.sigmoid()).clamp(min=1e-6)  # above zero, for its logarithm
        n = torch.arange(1, N + 1, device=x.device)
        angle = self.theta.to(x.dtype).sigmoid()[:, None] * (2 * math.pi / N) * n
        return alpha, fade, angle, real * N**-0.5, imag * N**-0.5

    @log_io
    def kernel(self, x: Tensor) -> Tensor:
        """What is left at each distance of an input of 1: k_t = Re(sum over n of gamma alpha q^t), (D, T) for x's T."""
        alpha, fade, angle, real, imag = (c[..., None] for c in self.coefficients(x))  # each (D, N, 1)
        t = torch.arange(x.shape[1], device=x.device)
        waves = real * (angle * t).cos() - imag * (angle * t).sin()  # (D, N, T)
        return (alpha * (fade.log() * t).exp() * waves).sum(dim=1)

    @log_io
    def convolve(self, x: Tensor) -> Tensor:
        """y_t = sum over s <= t of k_(t-s) x_s, as a product of Fourier transforms: (B, T, D) -> (B, T, D)

        Both are followed by T zeros: the transform takes a row for a circle, and its end must not reach its start.
        """
        T = x.shape[1]
        spectrum = torch.fft.rfft(x.transpose(1, 2), n=2 * T) * torch.fft.rfft(self.kernel(x), n=2 * T)  # (B, D, T+1)
        return torch.fft.irfft(spectrum, n=2 * T)[..., :T].transpose(1, 2)

    @log_io
    def scan(self, x: Tensor, ctx: Context) -> Tensor:
        """The same by the recurrence, from the decode state on and anew with each document: (B, T, D) -> (B, T, D)"""
        alpha, fade, angle, real, imag = self.coefficients(x)
        first = document_starts(x, ctx)[..., None, None]  # (B, T, 1, 1) or (1, T, 1, 1)
        q = torch.polar(fade, angle).masked_fill(first, 0.0)  # (B, T, D, N) or (1, T, D, N)
        entering = (alpha * x[..., None]).to(q.dtype)  # (B, T, D, N)
        before = recall(entering, ctx, 1)  # (B, 1, D, N)
        h = linear_scan(q, entering, before[:, 0])
        keep(before, h, ctx)
        return (h.real * real - h.imag * imag).sum(dim=-1)
