"""Cross-entropy over a large vocabulary, by pieces: the logits of a whole batch are never held."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 1024  # positions per piece: 8 MB of fp32 logits at a vocabulary of 2,048


def cross_entropy(features: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    """Mean of -ln p(target) in nats, of `head(features)`: features (B, T, D), targets (B, T) int64 -> ().

    The same number as F.cross_entropy of all logits in fp32, and the same gradients. These are worked out in the
    forward pass, while a piece's logits are at hand, so that B x T x V numbers are never held. They can be
    differentiated once only.
    """
    return _CrossEntropy.apply(features, targets, head, *head.parameters())


class _CrossEntropy(torch.autograd.Function):
    """The weights of `head` are arguments of their own, since autograd looks for what to differentiate there."""

    @staticmethod
    def forward(ctx, features, targets, head, *weights):
        ctx.wanted = [w.requires_grad for w in weights]
        learned = [w for w in weights if w.requires_grad]
        total = torch.zeros((), device=features.device)
        rows_grads, learned_grads = [], [torch.zeros_like(w) for w in learned]
        pieces = zip(features.flatten(0, 1).split(ROWS), targets.flatten().split(ROWS), strict=True)
        for rows, ids in pieces:
            rows = rows.detach().requires_grad_()  # (R, D)
            with torch.enable_grad():
                loss = F.cross_entropy(head(rows).float(), ids, reduction="sum") / targets.numel()
            rows_grad, *grads = torch.autograd.grad(loss, [rows, *learned])
            rows_grads.append(rows_grad)
            for whole, grad in zip(learned_grads, grads, strict=True):
                whole += grad
            total += loss.detach()
        ctx.save_for_backward(torch.cat(rows_grads).view_as(features), *learned_grads)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale):
        features, *learned = (grad * scale for grad in ctx.saved_tensors)
        weights = iter(learned)
        return features, None, None, *(next(weights) if wanted else None for wanted in ctx.wanted)
