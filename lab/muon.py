"""Muon, with the matrices of one shape orthogonalised together: the same update in far fewer calls."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`'s update and state; all matrices of a shape go through its iteration as one stack.

    A model of a few hundred small matrices (layers times projections, experts) spends its time on calls, not on
    arithmetic, when each is worked on by itself. What the stack changes is rounding: bf16's, as in PyTorch's own.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; constants as in PyTorch.
    """

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        """Updates every matrix that has a gradient. Raises ValueError for a closure, which is not supported."""
        if closure is not None:
            raise ValueError("closure is not supported: call backward() first, then step()")
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape].append(p)
            for params in alike.values():
                self._update(params, group)

    def _update(self, params: list[Tensor], group: dict) -> None:
        """One step of n matrices of the same shape (R, C)."""
        momentum, (rows, columns) = group["momentum"], params[0].shape
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads, memories = [p.grad for p in params], [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(memories, grads, 1 - momentum)
        update = torch.stack(memories)  # (n, R, C)
        if group["nesterov"]:
            update = torch.stack(grads).lerp_(update, momentum)
        update = orthogonalise(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        scale = max(1, rows / columns) ** 0.5  # a tall matrix moves as far per output as a square one
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, update.float().unbind(), alpha=-group["lr"] * scale)


def orthogonalise(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Moves the singular values of each matrix of x (n, R, C) towards 1, by a Newton-Schulz iteration in bf16."""
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    x = x.bfloat16().mT if tall else x.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)  # no singular value is above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
