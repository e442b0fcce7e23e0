"""What the modules of `seen.py` and `unseen.py` are called with. All sizes differ, so that axes can be told apart."""

import torch
from torch import Generator, Tensor

from config import ModelConfig

CFG = ModelConfig(dim=32, num_q_heads=4, num_kv_heads=2, head_dim=6, mlp_hidden=80, vocab_size=97, max_seq_len=16,
                  num_layers=1)  # fmt: skip
STANDARD, OTHER = (3, 5), (5, 9)  # (B, T) of the call that a mutant breaks, and of one more that a mended one must pass
MEMORY = 2  # memory is this much longer than x


def activations(cfg: ModelConfig, B: int, T: int, generator: Generator) -> tuple[Tensor, ...]:
    """x (B, T, D)"""
    return (torch.randn(B, T, cfg.dim, generator=generator),)


def long_activations(cfg: ModelConfig, B: int, T: int, generator: Generator) -> tuple[Tensor, ...]:
    """x (B, 7 T, D), for modules that shorten it"""
    return activations(cfg, B, 7 * T, generator)


def activations_and_mask(cfg: ModelConfig, B: int, T: int, generator: Generator) -> tuple[Tensor, ...]:
    """x (B, T, D) and a causal mask for the longest context, int64 (max_seq_len, max_seq_len), 1 where one may look"""
    mask = torch.ones(cfg.max_seq_len, cfg.max_seq_len).tril().long()
    return *activations(cfg, B, T, generator), mask


def activations_and_memory(cfg: ModelConfig, B: int, T: int, generator: Generator) -> tuple[Tensor, ...]:
    """x (B, T, D), memory (B, S, D) and which places of it are filled, int64 (B, S)"""
    memory = torch.randn(B, T + MEMORY, cfg.dim, generator=generator)
    lengths = torch.randint(1, T + MEMORY + 1, (B, 1), generator=generator)
    filled = (torch.arange(T + MEMORY) < lengths).long()
    return *activations(cfg, B, T, generator), memory, filled


def tokens(cfg: ModelConfig, B: int, T: int, generator: Generator) -> tuple[Tensor, ...]:
    """tokens (B, T)"""
    return (torch.randint(cfg.vocab_size, (B, T), generator=generator),)


def tokens_and_targets(cfg: ModelConfig, B: int, T: int, generator: Generator) -> tuple[Tensor, ...]:
    """tokens (B, T) and targets (B, T), both int32, as they come out of a file"""
    ids = torch.randint(cfg.vocab_size, (B, T + 1), generator=generator, dtype=torch.int32)
    return ids[:, :-1], ids[:, 1:]
