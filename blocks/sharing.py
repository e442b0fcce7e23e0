"""Sharing weights between layers, with a little left to each.

The language shares by itself: `MLP#ffn` is one MLP for all layers, `{...}^12` one layer run twelve times (ALBERT: Lan
et al. 2019, arXiv 1909.11942, section 3.1). `LowRank` gives each place its own small difference from what is shared.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from config import ModelConfig
from model import Context, layer, make_context
from tools import LoggingModule, log_io


@layer("LowRank")
class LowRank(LoggingModule):
    """Its inner recipe, with a low-rank difference added to each of its matrices: W + up @ down in place of W.

        'Norm->LowRank(rank=4){Attn#attn}->+->Norm->LowRank(rank=4){MLP#ffn}->+'

    Here all layers share one attention and one MLP, through their tags, and each has its own `up` and `down`. A matrix
    of I x O numbers becomes another one in each layer for rank x (I + O) numbers more. `up` starts at zero, so that all
    layers begin alike. Applies to every nn.Linear of the inner recipe; norms, biases and convolutions stay as they are.
    Decode state: the inner recipe's.
    Source: low-rank differences: Hu et al. 2021, arXiv 2106.09685, eq. 3, without its factor alpha / rank; of layers
    that share their weights: Bae et al. 2024, arXiv 2410.20672 (there started from a trained model's layers, by the
    largest singular values of what they differ in). Deviates by adding the product to the matrix before it is used:
    that works for any inner recipe, and costs rank x I x O multiplications per call, whatever the number of tokens.
    """

    causal, decodes = True, True

    def __init__(self, cfg: ModelConfig, inner: nn.Module, *, rank: int = 4):
        super().__init__()
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank={rank!r} must be a whole number, at least 1")
        matrices = {name: part.weight for name, part in inner.named_modules() if isinstance(part, nn.Linear)}
        if not matrices:
            raise ValueError("the inner recipe has no nn.Linear whose weight could differ")
        self.cfg, self.inner = cfg, inner
        self.names = list(matrices)
        shapes = [weight.shape for weight in matrices.values()]  # (O, I)
        self.up = nn.ParameterList(torch.zeros(O, rank) for O, _ in shapes)
        self.down = nn.ParameterList(torch.randn(rank, I) * I**-0.5 for _, I in shapes)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        ctx = make_context(self.cfg, x) if ctx is None else ctx
        return functional_call(self.inner, self.matrices(), (x, ctx))

    @log_io
    def matrices(self) -> dict[str, Tensor]:
        """What stands in for the inner recipe's matrices here, by name: each (O, I), outputs by inputs."""
        parts = zip(self.names, self.up, self.down, strict=True)
        return {f"{name}.weight": self.inner.get_submodule(name).weight + up @ down for name, up, down in parts}
