"""Heads beside the model's own, which train it to look further ahead."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from model import Context, layer
from tools import LoggingModule, log_io


@layer("MultiToken")
class MultiToken(LoggingModule):
    """Gives x on as it is; in training, its inner recipe learns on the side to predict a token after the next one.

        h = inner(x),  aux = weight * mean_t cross_entropy(predict(h_t), token t + 1 + ahead)

    `predict` is the model's own final norm and head. The targets lie in the row itself, whose last 1 + ahead positions
    have none. Three heads before the last of eight layers, L being "Norm->Attn->+->Norm->MLP->+", with num_layers=1:

        '{L}*7->MultiToken(ahead=cyc(1,2,3)){L}*3->{L}'

    The last layer is then the head for the next token, and the seven before it, the trunk, learn from all four losses.
    The loss is left in `ctx.aux`. A token of another document of a packed row is no target. Outside of training the
    inner recipe doesn't run. Decode state: none.
    Source: Gloeckle et al. 2024, arXiv 2404.19737, eq. 2 and section 2 (all heads weigh the same there: weight=1).
    Deviates by holding the logits of all heads at once, where theirs go one after the other to save memory.
    """

    causal, decodes = True, True

    def __init__(self, cfg: ModelConfig, inner: nn.Module, *, ahead: int = 1, weight: float = 1.0):
        super().__init__()
        if isinstance(ahead, bool) or not isinstance(ahead, int) or ahead < 1:
            raise ValueError(f"ahead={ahead!r} must be a whole number, at least 1: the token after the next one")
        if not weight > 0:
            raise ValueError(f"weight={weight!r} must be positive: leave the block out instead")
        self.inner, self.ahead, self.weight = inner, ahead, weight

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D), the same"""
        if not self.training or ctx is None or ctx.predict is None:
            return x
        if ctx.tokens.shape != x.shape[:2]:
            raise ValueError(
                f"MultiToken got {x.shape[1]} rows for {ctx.tokens.shape[1]} tokens: it can't stand in a wrapper that "
                "changes their number"
            )
        if x.shape[1] > 1 + self.ahead:
            ctx.aux[ctx.slot, "multi_token"] = self.weight * self.loss(self.inner(x, ctx.at("inner")), ctx)
        return x

    @log_io
    def loss(self, h: Tensor, ctx: Context) -> Tensor:
        """Mean cross-entropy in nats of the tokens 1 + ahead further on: (B, T, D) -> a number"""
        distance = 1 + self.ahead
        logits = ctx.predict(h[:, :-distance])  # (B, T - distance, V)
        targets = ctx.tokens[:, distance:]  # (B, T - distance)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (B, T - distance)
        if ctx.segments is None:
            return losses.mean()
        same = ctx.segments[:, :-distance] == ctx.segments[:, distance:]
        return (losses * same).sum() / same.sum().clamp_min(1)
