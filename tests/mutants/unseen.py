"""Right modules, second half: nobody who writes the tracer's hints looks at this file or at its mutants.

Small, and written the way different people write them, on purpose. `MODULES` says what each is called with.
"""

import torch
from torch import Tensor, einsum, nn
from torch.nn import functional as F

from mutants.inputs import (
    activations,
    activations_and_mask,
    activations_and_memory,
    long_activations,
    tokens,
    tokens_and_targets,
)
from tools import LoggingModule, log_io


class MaskedSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.n_q, self.hd = config.num_q_heads, config.head_dim
        self.in_proj = nn.Linear(config.dim, 3 * self.n_q * self.hd, bias=False)
        self.out_proj = nn.Linear(self.n_q * self.hd, config.dim, bias=False)

    def forward(self, x, mask):
        bsz, steps, _ = x.shape
        q, k, v = torch.split(self.in_proj(x), self.n_q * self.hd, dim=-1)
        q = q.unflatten(2, (self.n_q, self.hd)).permute(0, 2, 1, 3)
        k = k.unflatten(2, (self.n_q, self.hd)).permute(0, 2, 3, 1)
        v = v.unflatten(2, (self.n_q, self.hd)).permute(0, 2, 1, 3)
        scores = torch.matmul(q, k) * self.hd**-0.5
        visible = mask[:steps, :steps].to(torch.bool)
        scores = torch.where(visible, scores, torch.finfo(scores.dtype).min)
        context = torch.softmax(scores, -1).matmul(v)
        context = context.permute(0, 2, 1, 3).contiguous()
        return self.out_proj(context.view(bsz, steps, self.n_q * self.hd))


class ExpandedGQA(LoggingModule):
    """Grouped queries: each key/value head is broadcast to its H/G query heads; a learned bias per distance."""

    def __init__(self, cfg):
        super().__init__()
        H, G, K, D = cfg.num_q_heads, cfg.num_kv_heads, cfg.head_dim, cfg.dim
        self.H, self.G, self.K = H, G, K
        self.Wq = nn.Linear(D, H * K, bias=False)
        self.Wkv = nn.Linear(D, 2 * G * K, bias=False)
        self.Wo = nn.Linear(H * K, D, bias=False)
        self.distance_bias = nn.Parameter(torch.randn(H, cfg.max_seq_len))

    def widen(self, kv: Tensor) -> Tensor:
        """(B, T, G, K) -> (B, H, T, K)"""
        B, T, G, K = kv.shape
        kv = kv.transpose(1, 2).unsqueeze(2)  # (B, G, 1, T, K)
        return kv.expand(B, G, self.H // G, T, K).reshape(B, self.H, T, K)

    @log_io
    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q = self.Wq(x).view(B, T, self.H, self.K).transpose(1, 2)  # (B, H, T, K)
        k, v = self.Wkv(x).view(B, T, 2, self.G, self.K).unbind(dim=2)
        k, v = self.widen(k), self.widen(v)
        place = torch.arange(T, device=x.device)
        distance = place[:, None] - place[None, :]  # (T, T)
        bias = self.distance_bias[:, distance.clamp(min=0)]  # (H, T, T)
        scores = q @ k.mT / self.K**0.5 + bias[None, :, :, :]
        scores = scores.masked_fill(distance < 0, float("-inf"))
        out = scores.softmax(dim=-1) @ v  # (B, H, T, K)
        return self.Wo(out.transpose(1, 2).reshape(B, T, self.H * self.K))


class LatentAttention(nn.Module):
    """Keys and values come out of a narrow latent vector, which alone would have to be cached."""

    rank = 10

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.q_up = nn.Linear(cfg.dim, cfg.num_q_heads * cfg.head_dim, bias=False)
        self.kv_down = nn.Linear(cfg.dim, self.rank, bias=False)
        self.kv_norm = nn.RMSNorm(self.rank)
        self.k_up = nn.Linear(self.rank, cfg.num_kv_heads * cfg.head_dim, bias=False)
        self.v_up = nn.Linear(self.rank, cfg.num_kv_heads * cfg.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.num_q_heads * cfg.head_dim, cfg.dim, bias=False)

    def heads_first(self, t, num_heads):
        return t.view(t.size(0), t.size(1), num_heads, self.cfg.head_dim).transpose(1, 2)

    def forward(self, x):
        latent = self.kv_norm(self.kv_down(x))
        q = self.heads_first(self.q_up(x), self.cfg.num_q_heads)
        k = self.heads_first(self.k_up(latent), self.cfg.num_kv_heads)
        v = self.heads_first(self.v_up(latent), self.cfg.num_kv_heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).flatten(2, 3))


class LinearAttention(nn.Module):
    """Attention without a softmax: a running sum of key-value products, read out by the queries."""

    def __init__(self, cfg):
        super().__init__()
        self.heads, self.width = cfg.num_q_heads, cfg.head_dim
        self.to_qkv = nn.Linear(cfg.dim, self.heads * self.width * 3, bias=False)
        self.to_out = nn.Linear(self.heads * self.width, cfg.dim)

    def forward(self, x):
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, self.width)) for t in (q, k, v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        state = einsum("bthi,bthj->bthij", k, v).cumsum(dim=1)
        total = k.cumsum(dim=1)
        above = einsum("bthi,bthij->bthj", q, state)
        below = (q * total).sum(dim=-1, keepdim=True)
        return self.to_out((above / below).flatten(-2))


class MemoryReader(nn.Module):
    """Reads a memory with one key/value head for all query heads (multi-query); empty places are left out."""

    def __init__(self, cfg):
        super().__init__()
        dim, self.nh, self.hd = cfg.dim, cfg.num_q_heads, cfg.head_dim
        self.norm = nn.LayerNorm(dim)
        self.wq = nn.Linear(dim, self.nh * self.hd)
        self.wk = nn.Linear(dim, self.hd)
        self.wv = nn.Linear(dim, self.hd)
        self.wo = nn.Linear(self.nh * self.hd, dim)

    def forward(self, x, memory, filled):
        B, T, _ = x.shape
        S = memory.shape[1]
        q = self.wq(self.norm(x)).reshape(B, T * self.nh, self.hd)
        k, v = self.wk(memory), self.wv(memory)
        weights = torch.bmm(q, k.transpose(1, 2)) / self.hd**0.5
        filled = filled.bool().unsqueeze(1)
        weights = weights.masked_fill(~filled, float("-inf")).softmax(2)
        weights = weights.view(B, T, self.nh, S)
        read = torch.matmul(weights, v.unsqueeze(1))
        return x + self.wo(read.reshape(B, T, self.nh * self.hd))


class GLUBlock(LoggingModule):
    """A gated MLP whose input is normalised by hand and whose output has a learned gain."""

    def __init__(self, cfg):
        super().__init__()
        D, F_ = cfg.dim, cfg.mlp_hidden
        self.gamma = nn.Parameter(torch.ones(1, 1, D))
        self.Wgate = nn.Parameter(torch.randn(D, F_) * D**-0.5)
        self.Wup = nn.Parameter(torch.randn(D, F_) * D**-0.5)
        self.Wdown = nn.Parameter(torch.randn(F_, D) * F_**-0.5)

    @log_io
    def normalise(self, x):
        centred = x - x.mean(dim=2, keepdim=True)
        norm = torch.linalg.vector_norm(centred, dim=2, keepdim=True)
        return centred / (norm + 1e-6) * self.gamma

    @log_io
    def forward(self, x):
        h = self.normalise(x)
        hidden = torch.sigmoid(h @ self.Wgate) * torch.matmul(h, self.Wup)
        return x + hidden @ self.Wdown


class ExpertList(nn.Module):
    """A dense mixture of experts, each its own small network; their answers are stacked and weighed."""

    def __init__(self, cfg, n_experts=9):
        super().__init__()
        self.gate = nn.Linear(cfg.dim, n_experts, bias=False)
        self.up = nn.ModuleList(nn.Linear(cfg.dim, cfg.mlp_hidden) for _ in range(n_experts))
        self.down = nn.ModuleList(nn.Linear(cfg.mlp_hidden, cfg.dim) for _ in range(n_experts))

    def forward(self, x):
        gates = F.softmax(self.gate(x), dim=-1)
        answers = [down(F.silu(up(x))) for up, down in zip(self.up, self.down)]
        answers = torch.stack(answers, dim=2)
        return torch.matmul(gates.unsqueeze(2), answers).squeeze(2)


class PatchMixer(nn.Module):
    """Neighbouring positions become one patch; patches are mixed by their running mean and spread out again."""

    patch = 5

    def __init__(self, cfg):
        super().__init__()
        self.squash = nn.Linear(self.patch * cfg.dim, cfg.dim)
        self.spread = nn.Linear(cfg.dim, self.patch * cfg.dim)
        self.where = nn.Embedding(cfg.max_seq_len, cfg.dim)

    def pool(self, x):
        nb, steps, dim = x.shape
        patches = x.reshape(nb, steps // self.patch, self.patch * dim)
        return self.squash(patches)

    def forward(self, x):
        length = x.size(1)
        x = F.pad(x, (0, 0, 0, -length % self.patch))
        pooled = self.pool(x)
        pooled = pooled + self.where(torch.arange(pooled.size(1)))
        counts = torch.arange(1, pooled.shape[1] + 1).view(1, -1, 1)
        mixed = torch.cumsum(pooled, dim=1) / counts
        fine = self.spread(mixed).unflatten(-1, (self.patch, -1)).flatten(1, 2)
        return fine[:, :length]


class Rotation(nn.Module):
    """Rotary positions: channels (i, i + K/2) of (B, T, H, K) turn together."""

    def __init__(self, cfg):
        super().__init__()
        speed = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2) / cfg.head_dim)
        angle = torch.outer(torch.arange(cfg.max_seq_len), speed)
        angle = torch.cat([angle, angle], dim=-1)
        self.register_buffer("cos", angle.cos()[:, None, :], persistent=False)
        self.register_buffer("sin", angle.sin()[:, None, :], persistent=False)

    def forward(self, x):
        T = x.shape[1]
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return x * self.cos[:T] + turned * self.sin[:T]


class RotaryBlock(nn.Module):
    """Attention with rotary positions and normalised queries and keys, then a convolution, both added."""

    def __init__(self, cfg):
        super().__init__()
        H, K = cfg.num_q_heads, cfg.head_dim
        self.num_heads, self.head_dim = H, K
        self.norm = nn.RMSNorm(cfg.dim)
        self.q, self.k, self.v = (nn.Linear(cfg.dim, H * K, bias=False) for _ in range(3))
        self.q_gain = nn.Parameter(torch.ones(H, 1, 1))
        self.rotation = Rotation(cfg)
        self.o = nn.Linear(H * K, cfg.dim, bias=False)
        self.conv = nn.Conv1d(cfg.dim, cfg.dim, kernel_size=7, padding=6, groups=cfg.dim)
        self.register_buffer("causal", torch.ones(1, 1, cfg.max_seq_len, cfg.max_seq_len).tril() == 1, persistent=False)

    def attend(self, x):
        T = x.shape[1]
        q = self.rotation(self.q(x).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        k = self.rotation(self.k(x).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        v = self.v(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k = F.normalize(q, dim=-1) * self.q_gain, F.normalize(k, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.causal[:, :, :T, :T])
        return self.o(out.transpose(1, 2).flatten(start_dim=-2))

    def forward(self, x):
        x = x + self.attend(self.norm(x))
        nearby = self.conv(x.mT)[..., : x.shape[1]].mT
        return x + F.gelu(nearby)


class TiedLM(LoggingModule):
    """A one-layer language model whose head is its embedding; the loss is taken by hand."""

    def __init__(self, cfg):
        super().__init__()
        self.wte = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.wpe = nn.Embedding(cfg.max_seq_len, cfg.dim)
        self.fc = nn.Linear(cfg.dim, cfg.mlp_hidden)
        self.out = nn.Linear(cfg.mlp_hidden, cfg.dim)

    def logits(self, ids):
        T = ids.shape[-1]
        x = self.wte(ids) + self.wpe(torch.arange(T, device=ids.device))
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        x = x + self.out(torch.tanh(self.fc(x + before)))
        return x @ self.wte.weight.T

    @log_io
    def forward(self, ids, targets):
        logp = self.logits(ids).log_softmax(dim=-1)
        picked = logp.gather(2, targets.long().unsqueeze(2)).squeeze(2)
        return -picked.mean(dim=1)


class BagClassifier(nn.Module):
    """Weighs the tokens of a text by learned attention and scores all words with the sum."""

    def __init__(self, cfg):
        super().__init__()
        V, D, H = cfg.vocab_size, cfg.dim, cfg.num_q_heads
        self.emb = nn.Embedding(V, D)
        self.probe = nn.Parameter(torch.randn(H, D))
        self.merge = nn.Linear(H * D, D)
        self.head = nn.Linear(D, V)

    def forward(self, ids):
        x = self.emb(ids)
        scores = einsum("btd,hd->bht", x, self.probe)
        pooled = torch.bmm(scores.softmax(dim=2), x)
        return self.head(torch.relu(self.merge(pooled.flatten(1))))


MODULES = {
    MaskedSelfAttention: activations_and_mask,
    ExpandedGQA: activations,
    LatentAttention: activations,
    LinearAttention: activations,
    MemoryReader: activations_and_memory,
    GLUBlock: activations,
    ExpertList: activations,
    PatchMixer: long_activations,
    RotaryBlock: activations,
    TiedLM: tokens_and_targets,
    BagClassifier: tokens,
}
