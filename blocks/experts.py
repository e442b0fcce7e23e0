"""Mixture of experts: many MLPs side by side, of which each token uses a few."""

from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from model import MLP, Context, layer
from tools import LoggingModule, log_io

SCORES = {"softmax": partial(torch.softmax, dim=-1), "sigmoid": torch.sigmoid}


@layer("MoE")
class MoE(LoggingModule):
    """A router picks `top_k` of E experts for each token; the token gets the weighted sum of what these say.

        s = softmax(Wr x), or sigmoid(Wr x)        one score for each of the E experts
        C = the top_k experts with the largest s + b
        y = scale * sum over i in C of w_i expert_i(x) + shared(x)

    where w_i = s_i, or s_i / (sum of s over C) with `norm_topk`. An expert is the `MLP` of model.py with `hidden`
    channels; it sees only the tokens sent to it. b is zero unless `bias` is set. In shape comments E is the number of
    experts and A = top_k that of active ones.

    Sources: top-k routing: Shazeer et al. 2017, arXiv 1701.06538, eq. 3; the defaults are Mixtral's (Jiang et al. 2024,
    arXiv 2401.04088, section 2.1). OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): norm_topk=false. Qwen2-MoE:
    shared=4, shared_gate=true, norm_topk=false. DeepSeek-V3 (2024, arXiv 2412.19437, eq. 12-16): router="sigmoid",
    bias=true, shared=1, scale=2.5. Deviations: no limit on an expert's tokens, so none is dropped, and no groups of
    experts. The experts never choose among a row's tokens: such a choice would depend on tokens yet to come.

    Keeping all experts busy, while training:
      balance  adds balance * E * sum_i f_i P_i to the loss: f_i tokens sent to expert i per token, P_i its mean score
               (sigmoid scores divided by their sum first). Even use gives balance * top_k. None: 0.01, or 0 with
               `bias`. Fedus et al. 2021, arXiv 2101.03961, eq. 4-6, for top_k experts and for each layer by itself.
      z        adds z * mean((log sum exp of the logits)^2), which keeps logits small. Zoph et al. 2022, arXiv
               2202.08906, eq. 5.
      bias     adds no loss: after each optimizer step `after_step()` raises b by `bias_rate` for each expert that got
               fewer tokens than the average, and lowers it for the others. b decides who is chosen and never how much
               it counts. Wang et al. 2024, arXiv 2408.15664, algorithm 1.

    Parameters: (E + shared) * P + D * E, where P is that of one MLP (3 D F with a gate); a token uses
    (top_k + shared) * P + D * E of them, `active_parameters`. Each expert's matrices are parameters of their own, so
    that Muon, which works on single matrices, takes them as it takes those of an MLP; one that got no token has a zero
    gradient, never none. Decode state: none, each token is worked on by itself.
    """

    causal, decodes = True, True

    def __init__(
        self,
        cfg: ModelConfig,
        *,
        experts: int = 8,
        top_k: int = 2,
        hidden: int | None = None,  # F of one expert; None: the config's mlp_hidden
        shared: int = 0,  # experts that every token uses, as one MLP that is so many times as wide
        shared_gate: bool = False,  # weigh the shared experts by sigmoid(Wg x)
        router: str = "softmax",
        norm_topk: bool | None = None,  # None: where top_k > 1
        scale: float = 1.0,
        balance: float | None = None,
        z: float = 0.0,
        bias: bool = False,
        bias_rate: float = 1e-3,
    ):
        super().__init__()
        hidden = cfg.mlp_hidden if hidden is None else hidden
        norm_topk = top_k > 1 if norm_topk is None else norm_topk
        _check(experts, top_k, hidden, shared, shared_gate, router, norm_topk)
        self.top_k, self.score, self.norm_topk, self.scale = top_k, SCORES[router], norm_topk, scale
        self.balance = (0.0 if bias else 0.01) if balance is None else balance
        self.z, self.bias_rate = z, bias_rate
        self.router = nn.Linear(cfg.dim, experts, bias=False)
        self.experts = nn.ModuleList(MLP(cfg.replace(mlp_hidden=hidden)) for _ in range(experts))
        self.shared = MLP(cfg.replace(mlp_hidden=shared * hidden)) if shared else None
        self.shared_gate = nn.Linear(cfg.dim, 1, bias=False) if shared_gate else None
        self.register_buffer("bias", torch.zeros(experts) if bias else None)
        self.register_buffer("load", torch.zeros(experts, dtype=torch.int64) if bias else None, persistent=False)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        logits = self.router(x)  # (B, T, E)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # close scores differ by little
        scores = self.score(logits)  # (B, T, E)
        weights, chosen = self.choose(scores)  # (B, T, A), (B, T, A)
        counts = F.one_hot(chosen, len(self.experts)).sum(dim=(0, 1, 2))  # (E,): tokens for each expert
        if self.training:
            self.watch(logits, scores, counts, ctx)
        y = self.send(x, weights.to(x.dtype), chosen, counts)
        if self.shared is None:
            return y
        shared = self.shared(x)
        return y + (shared if self.shared_gate is None else self.shared_gate(x).sigmoid() * shared)  # (B, T, D)

    @log_io
    def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of each token's experts and which they are: (B, T, E) -> (B, T, A), (B, T, A)"""
        chosen = (scores if self.bias is None else scores + self.bias).topk(self.top_k).indices  # (B, T, A)
        weights = scores.gather(-1, chosen)  # (B, T, A)
        if self.norm_topk:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * self.scale, chosen

    @log_io
    def send(self, x: Tensor, weights: Tensor, chosen: Tensor, counts: Tensor) -> Tensor:
        """Sends each token to its experts and adds up what they say: x (B, T, D) -> (B, T, D)

        Every token is there A times, once for each of its experts. Sorted by expert, the copies make one piece for each
        expert. One without tokens works on an empty piece, so that its gradient is zeros and not missing.
        """
        order = chosen.flatten().argsort(stable=True)  # (A*B*T,): the copies for expert 0, those for expert 1, ...
        token = order // self.top_k  # (A*B*T,): whose copy it is
        pieces = x.flatten(0, 1).index_select(0, token).split(counts.tolist())
        said = torch.cat([expert(piece) for expert, piece in zip(self.experts, pieces)])  # (A*B*T, D)
        said = said * weights.flatten()[order, None]  # (A*B*T, D)
        y = said.new_zeros(x.shape).flatten(0, 1)  # (B*T, D)
        return y.index_add(0, token, said).view(x.shape)  # (B, T, D)

    def watch(self, logits: Tensor, scores: Tensor, counts: Tensor, ctx: Context | None) -> None:
        """Leaves the auxiliary losses in `ctx`, and counts tokens for `after_step`: (B, T, E), (B, T, E), (E,)

        Where several processes train together, the counts are those of all: bias and losses are then as in a single one
        (the mean of the processes' losses has the same P, and the same f).
        """
        if processes() > 1:
            counts = counts.clone()
            dist.all_reduce(counts)
        if self.load is not None:
            self.load += counts
        if ctx is None:
            return
        if self.balance:
            ctx.aux[ctx.slot, "balance"] = self.balance * balance_loss(scores, counts)
        if self.z:
            ctx.aux[ctx.slot, "router_z"] = self.z * logits.logsumexp(dim=-1).square().mean()

    @torch.no_grad()
    def after_step(self) -> None:
        """To be called after each optimizer step: moves the bias towards even use, and counts anew."""
        if self.bias is not None:
            missing = self.load.double().mean() - self.load  # (E,): above 0 for those that got too few
            self.bias += self.bias_rate * missing.sign()
            self.load.zero_()

    @property
    def active_parameters(self) -> int:
        """How many of the parameters one token uses."""
        idle = len(self.experts) - self.top_k
        one = sum(p.numel() for p in self.experts[0].parameters())
        return sum(p.numel() for p in self.parameters()) - idle * one

    @property
    def starts_at_zero(self) -> bool:
        """Whether the experts' last matrices start at zero; a recipe that has a norm behind this block says no."""
        return getattr(self.experts[0], "starts_at_zero", True)

    @starts_at_zero.setter
    def starts_at_zero(self, value: bool) -> None:
        for expert in [*self.experts, *([self.shared] if self.shared is not None else [])]:
            expert.starts_at_zero = value


def processes() -> int:
    """How many processes train together, each on a part of the batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def balance_loss(scores: Tensor, counts: Tensor) -> Tensor:
    """E * sum_i f_i P_i: scores (B, T, E), tokens for each expert (E,) -> a number, top_k where use is even.

    counts: over these tokens, or over N times as many that N processes have.

    Source: Fedus et al. 2021, arXiv 2101.03961, eq. 4-6. The gradient goes through P alone: f is made of counts.
    """
    share = counts.to(scores.dtype) / (processes() * scores[..., 0].numel())  # (E,): f, which sums to top_k
    mean = (scores / scores.sum(dim=-1, keepdim=True)).mean(dim=(0, 1))  # (E,): P, which sums to 1
    return len(counts) * (share * mean).sum()


def _check(experts: int, top_k: int, hidden: int, shared: int, shared_gate: bool, router: str, norm_topk: bool) -> None:
    for name, value, low in (("experts", experts, 1), ("hidden", hidden, 1), ("shared", shared, 0)):
        if value < low:
            raise ValueError(f"{name}={value} must be at least {low}")
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k={top_k} must be from 1 to experts={experts}: a token uses each expert at most once")
    if router not in SCORES:
        raise ValueError(f"router={router!r} is unknown; choose from {', '.join(SCORES)}")
    if top_k == 1 and norm_topk:
        raise ValueError("norm_topk=True makes a single expert's weight 1 always, so the router could not learn: "
                         "use norm_topk=false, or top_k=2")  # fmt: skip
    if shared_gate and not shared:
        raise ValueError("shared_gate=True needs shared=1 or more: there are no shared experts to weigh")
