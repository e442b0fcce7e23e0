"""What a machine can do, and how much of it a step needs: both sides of the MFU (model FLOPs utilisation)."""

import time

import torch
from torch import nn

from model import GPT, MQA


def flops_per_token(model: GPT, seq_len: int) -> float:
    """Floating-point operations of forward and backward pass per token, with rows of `seq_len` tokens.

    6 for each weight of a matrix product: a multiplication and an addition, once forward and twice backward. Causal
    attention adds 6 x seq_len for each channel of each query head: two products with half of the row's keys. The
    embedding is looked up, not multiplied. Other blocks count by their matrices alone.
    Source: Chowdhery et al. 2022, arXiv 2204.02311, appendix B, with attention's upper half left out.
    """
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    channels = sum(m.Wo.in_features for m in model.modules() if isinstance(m, MQA))
    return 6.0 * (matrices + channels * seq_len)


def matmul_limit(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a large matrix product here, measured: the best of five."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = []
    for _ in range(6):  # the first one warms up
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[1:])
