"""Training on a GPU: tokens/s and MFU of four presets, and the same losses as on the CPU.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --steps 50 --tokens 131072

Speed is that of `make_step` with `TrainConfig`'s defaults: bf16, torch.compile, fused AdamW. The MFU is its share of
what a large matrix product reaches on the same GPU. Before that, a few steps in fp32 are taken on both devices, and
their losses laid side by side. Without a GPU, one line says so.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import PRESETS, ModelConfig, TrainConfig
from lab import machine
from train import Step, make_step

NAMES = ("0.5m", "2m", "7m", "30m")
CLOSE = 1e-3  # nats per token that losses of the two devices may differ by


def batch_of(cfg: ModelConfig, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, cfg.vocab_size, (rows, cfg.max_seq_len + 1))
    return ids[:, :-1], ids[:, 1:]


def difference(cfg: ModelConfig) -> float:
    """The largest difference between the losses of four steps on the CPU and on the GPU, in nats per token."""
    cfg = cfg.replace(dropout_rate=0.0)  # the two draw different numbers
    torch.manual_seed(0)
    batches = [batch_of(cfg, 2) for _ in range(4)]
    settings = TrainConfig(precision="fp32", kernel="plain", compile=False, warmup_iters=0)
    losses = []
    for device in ("cpu", "cuda"):
        model = make_step(cfg, settings, "cpu").model  # both times drawn on the CPU: the same weights
        step = Step(model.to(device), settings)
        losses.append([step(*batch) for batch in batches])
    return max(abs(a - b) for a, b in zip(*losses, strict=True))


def measure(cfg: ModelConfig, tokens: int, steps: int) -> tuple[float, float, float]:
    """Tokens/s, the MFU, and the seconds of the first step, which compiles."""
    step = make_step(cfg, TrainConfig(), "cuda")
    batch, seconds = batch_of(cfg, max(1, tokens // cfg.max_seq_len)), []
    for _ in range(steps + 3):
        started = time.perf_counter()
        step(*batch)  # returns a number, and so waits for the GPU
        seconds.append(time.perf_counter() - started)
    torch.cuda.synchronize()
    speed = batch[0].numel() / statistics.median(seconds[3:])
    limit = machine.matmul_limit(step.device, step.precision)
    return speed, speed * machine.flops_per_token(step.model, cfg.max_seq_len) / limit, seconds[0]


def main(presets: tuple[str, ...] = NAMES, tokens: int = 65_536, steps: int = 30) -> None:
    """Measure and print a table.

    Args:
        presets: names of PRESETS
        tokens: tokens per step
        steps: steps that count; three before them warm up
    """
    if not torch.cuda.is_available():
        print("no GPU here (torch.cuda.is_available() is False): nothing to measure")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {tokens:,} tokens per step, {steps} steps")
    print(f"{'preset':<28} {'tokens/s':>12} {'MFU':>7} {'1st step s':>11}   fp32 losses against the CPU's")
    for name in presets:
        apart = difference(PRESETS[name])
        speed, mfu, first = measure(PRESETS[name], tokens, steps)
        verdict = "equal" if apart <= CLOSE else "NOT EQUAL"
        print(f"{name:<28} {speed:>12,.0f} {mfu:>7.1%} {first:>11.1f}   {verdict} (within {apart:.1e})", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
