"""What makes half a million parameters learn fast: one change at a time from one recipe, at equal CPU seconds.

    python benchmarks/ablations.py                                   # the table, from benchmarks/ablations.csv
    python benchmarks/ablations.py --train                           # trains what is missing first; stop at any time
    python benchmarks/ablations.py --train --settings base cosine    # these alone

The recipe that is changed is `BASE`; what won beyond doubt here is in the preset 0.5m, which has a line of its own.
Each setting is trained with each seed on TinyStories' training text, less the stories that are held out of it; the
validation text is not looked at. A run may spend `--seconds` of CPU time on one thread, scoring not counted: what a
step of each setting costs beside one of the base is measured first, all settings taking turns, and the number of steps,
which the schedule needs to know, follows from it. Differences are between runs of the same seed, which read the same
batches in the same order.
"""

import argparse
import functools
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.rows import append, read
from config import PRESETS, TRAINING, ModelConfig, TrainConfig
from lab import data
from lab.evaluation import evaluate, markdown
from lab.files import ROOT, shown
from lab.race import T_975
from tokenizer import Tokenizer, get_tokenizer
from train import Step, keep_memory, make_step

RESULTS = Path(__file__).with_suffix(".csv")
TEXT = ROOT.parent / "shared" / "data" / "tinystories_train.txt"
FIRST_SEED = 1
WARM_UP, TURNS = 2, 8  # steps that measure what a setting's step costs


# ---------------------------------------------------------------- what is compared

CONVOLVED = "Norm->ShortConv(residual=true)->Attn->+->Norm->ShortConv(residual=true)->MLP->+"
BASE = ModelConfig(
    dim=96, num_layers=4, vocab_size=4096, embed_dim=48, max_seq_len=512, num_q_heads=3, num_kv_heads=1, head_dim=32,
    qk_norm=True, mlp_hidden=168, recipe=CONVOLVED,
)  # fmt: skip
RATES = dict(muon_lr=0.03, lr_max=0.02)


def random_outputs(model: nn.Module) -> None:
    """Draws anew the blocks' last matrices, which start at zero otherwise, with the scale of all others."""
    for block in model.modules():
        if hasattr(block, "last"):
            weight = getattr(block, block.last).weight
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


@dataclass(frozen=True)
class Setting:
    """One change from the base: fields of the two configs, or of what is done with the model; or a preset."""

    about: str
    model: dict = field(default_factory=dict)
    train: dict = field(default_factory=dict)
    change: Callable[[nn.Module], None] | None = None  # at the start
    average: float = 0.0  # share of the steps, at the end, whose weights are averaged
    preset: str = ""  # in place of the base


X0 = "=@x0->{Norm->ShortConv(residual=true)->Attn->+->Norm->ShortConv(residual=true)->MLP->+->+(@x0,gate=true)}*4"
ONE_CONV = "Norm->ShortConv(residual=true)->Attn->+->Norm->MLP->+"
TWICE = "{" + CONVOLVED + "}^2"
ADAMW = dict(optimizer="adamw", muon_lr=0.02)

SETTINGS = {
    "base": Setting("4,096 pieces, short convolutions, one key/value head; Muon, 4x512 tokens a step, linear decay"),
    "0.5m": Setting("the preset: embedding scale, ReLU² and value residual together", preset="0.5m"),
    "0.5m, own values": Setting("the preset without value residual", {"attn_block": "MQA"}, preset="0.5m"),
    "0.5m, convolutions": Setting("the preset with the base's convolutions", {"recipe": CONVOLVED}, preset="0.5m"),
    "adamw 0.0015": Setting("AdamW for all, rate 0.0015", train=ADAMW | {"lr_max": 0.0015}),
    "adamw 0.003": Setting("AdamW for all, rate 0.003", train=ADAMW | {"lr_max": 0.003}),
    "adamw 0.006": Setting("AdamW for all, rate 0.006", train=ADAMW | {"lr_max": 0.006}),
    "adamw 0.012": Setting("AdamW for all, rate 0.012", train=ADAMW | {"lr_max": 0.012}),
    "low rates": Setting("Muon 0.02, AdamW 0.006", train={"muon_lr": 0.02, "lr_max": 0.006}),
    "batch 2": Setting("2x512 tokens a step", train={"batch_size": 2}),
    "batch 8": Setting("8x512 tokens a step", train={"batch_size": 8}),
    "batch 32": Setting("32x512 tokens a step", train={"batch_size": 32}),
    "cosine": Setting("cosine decay to zero", train={"anneal_type": "cosine"}),
    "wsd": Setting("constant, then the last 20 % linear to zero", train={"anneal_type": "wsd"}),
    "weight averaging": Setting("mean of the weights over the last 10 % of the steps", average=0.1),
    "no qk-norm": Setting("queries and keys as they are", {"qk_norm": False}),
    "relu2": Setting("ReLU² without a gate, as many parameters", {
        "mlp_gated": False, "mlp_nonlinearity": "relu2", "mlp_hidden": 252
    }),
    "random outputs": Setting("no zero-initialised outputs: blocks' last matrices start random", change=random_outputs),
    "logit cap": Setting("logits soft-capped at 30", {"logit_cap": 30.0}),
    "score cap": Setting("attention scores soft-capped at 50", {"attn_block": "SoftCapAttn"}),
    "value residual": Setting("the first layer's values in every layer", {"attn_block": "ValueResidualAttn"}),
    "x0 scalars": Setting("a learned share of the embedding added after each layer", {"num_layers": 1, "recipe": X0}),
    "untied head": Setting("a head of its own", {"tied_head": False}),
    "embedding scale": Setting("embeddings times sqrt(dim)", {"scale_first_residual": True}),
    "dropout": Setting("dropout 0.1", {"dropout_rate": 0.1}),
    "no convolutions": Setting("no short convolutions", {"recipe": ""}),
    "one convolution": Setting("short convolution before attention only", {"recipe": ONE_CONV}),
    "layers twice": Setting("each layer run twice", {"recipe": TWICE}),
    "vocabulary 2048": Setting("2,048 pieces 64 wide, MLP 224", {
        "vocab_size": 2048, "embed_dim": 64, "mlp_hidden": 224
    }),
    "skinnyfat": Setting("the preset 0.5m_5foot11_and_skinnyfat", preset="0.5m_5foot11_and_skinnyfat"),
}  # fmt: skip


def start(name: str, seed: int, steps: int) -> tuple[Step, int]:
    """A fresh model of that setting as a step function, and the rows of its batch."""
    setting = SETTINGS[name]
    cfg, rates = (PRESETS[setting.preset], TRAINING.get(setting.preset, {})) if setting.preset else (BASE, RATES)
    cfg = cfg.replace(**setting.model)
    settings = {"max_iters": steps, "seed": seed, "device": "cpu", "num_threads": 1}
    tcfg = TrainConfig(**settings | rates | setting.train)
    step = make_step(cfg, tcfg, "cpu")
    if setting.change:
        setting.change(step.model)
    return step, tcfg.batch_size


# ---------------------------------------------------------------- training


@dataclass
class Text:
    """What is trained on and what is held out, for one tokenizer."""

    tok: Tokenizer
    packed: data.PackedTokens
    held_out: list[str]


@functools.cache
def open_text(vocab_size: int) -> Text:
    """The training text without every 50th story. Raises FileNotFoundError where the text is not there."""
    source = data.open_source(str(TEXT))
    tok = get_tokenizer(vocab_size)
    return Text(tok, data.tokenize(source, "train", tok), data.validation_documents(source))


def batches_for(step: Step, rows: int, seed: int) -> data.Batches:
    cfg = step.model.cfg
    return data.Batches(open_text(cfg.vocab_size).packed, batch_size=rows, seq_len=cfg.max_seq_len, seed=seed)


def step_costs(names: list[str]) -> dict[str, float]:
    """CPU seconds that a step of each setting takes: the median of a few, with all settings taking turns."""
    runs, costs = {}, {name: [] for name in names}
    for name in names:
        step, rows = start(name, FIRST_SEED, steps=1000)
        runs[name] = step, batches_for(step, rows, FIRST_SEED)
    for turn in range(WARM_UP + TURNS):
        for name, (step, batches) in runs.items():
            begun = time.process_time()
            step(*batches.get(turn))
            costs[name].append(time.process_time() - begun)
    return {name: statistics.median(spent[WARM_UP:]) for name, spent in costs.items()}


def steps_for(names: list[str], seconds: float, base_steps: int | None) -> dict[str, int]:
    """How many steps of each setting cost as much as the base's, which spends `seconds` where no run of it is known."""
    costs = step_costs(["base", *(name for name in names if name != "base")])
    base_steps = base_steps or max(1, round(seconds / costs["base"]))
    return {name: max(1, round(base_steps * costs["base"] / costs[name])) for name in names}


def train_once(name: str, seed: int, steps: int) -> dict[str, object]:
    """Trains one setting with one seed; returns the row for the table of results."""
    step, rows = start(name, seed, steps)
    batches, text = batches_for(step, rows, seed), open_text(step.model.cfg.vocab_size)
    first = steps - math.ceil(SETTINGS[name].average * steps)  # from here on, weights are averaged
    mean: list[Tensor] = []
    begun = time.process_time()
    for i in range(steps):
        step(*batches.get(i))
        if i >= first:
            add_to_mean(mean, step.model, i - first + 1)
    spent = time.process_time() - begun
    with torch.no_grad():
        for p, averaged in zip(step.model.parameters(), mean, strict=False):  # empty where nothing is averaged
            p.copy_(averaged)
    bits = evaluate(step.model, text.tok, text.held_out)["bits_per_byte"]
    return {
        "setting": name,
        "seed": seed,
        "cpu_seconds": round(spent, 1),
        "steps": steps,
        "tokens": steps * rows * step.model.cfg.max_seq_len,
        "parameters": sum(p.numel() for p in step.model.parameters()),
        "bits_per_byte": round(bits, 4),
    }


@torch.no_grad()
def add_to_mean(mean: list[Tensor], model: nn.Module, count: int) -> None:
    """Makes `mean` the average of `count` states of the weights, of which the model holds the last."""
    if not mean:
        mean.extend(p.clone() for p in model.parameters())
    for averaged, p in zip(mean, model.parameters(), strict=True):
        averaged.lerp_(p, 1 / count)


def train_missing(names: list[str], seeds: int, seconds: float) -> None:
    """Adds a row to the results for each setting and seed that has none."""
    torch.set_num_threads(1)
    keep_memory()
    rows = read(RESULTS)
    steps = {row["setting"]: int(row["steps"]) for row in rows}  # the same for all seeds of a setting
    done = {(row["setting"], int(row["seed"])) for row in rows}
    unknown = [name for name in names if name not in steps]
    if unknown:
        steps |= steps_for(unknown, seconds, steps.get("base"))
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for name in names:
            if (name, seed) not in done:
                row = train_once(name, seed, steps[name])
                append(RESULTS, row)
                print(row, flush=True)


# ---------------------------------------------------------------- results


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval by Student's t; infinite for a single value."""
    if len(values) < 2:
        return values[0], math.inf
    return statistics.mean(values), T_975.get(len(values) - 1, 1.96) * statistics.stdev(values) / len(values) ** 0.5


def verdict(differences: list[float]) -> str:
    """Differences to the base, by seed, in words. Fewer bits are better."""
    mean, half = interval(differences)
    if abs(mean) <= half:
        return "no difference beyond noise"
    return "better" if mean < 0 else "worse"


def table(rows: list[dict]) -> str:
    """The table for the README, best first below the base. Raises ValueError where no run of the base is known."""
    bits = {}
    for row in rows:
        bits.setdefault(row["setting"], {})[row["seed"]] = float(row["bits_per_byte"])
    if "base" not in bits:
        raise ValueError(f"{shown(RESULTS)} holds no run of the base: start with --train")
    last = {row["setting"]: row for row in rows}
    names = sorted(bits, key=lambda name: (name != "base", statistics.mean(bits[name].values())))
    return markdown([line(name, bits[name], bits["base"], last[name]) for name in names])


def line(name: str, own: dict[str, float], base: dict[str, float], row: dict) -> dict[str, str]:
    mean, half = interval(list(own.values()))
    cells = {
        "setting": name,
        "what is changed": SETTINGS[name].about if name in SETTINGS else "",
        "parameters": f"{int(row['parameters']):,}",
        "tokens": f"{int(row['tokens']) / 1e6:.2f} M",
        "bits/byte": f"{mean:.4f} ± {half:.4f} ({len(own)})",
        "less the base's": "",
        "verdict": "",
    }
    differences = [own[seed] - base[seed] for seed in own if seed in base]
    if name != "base" and differences:
        mean, half = interval(differences)
        cells |= {"less the base's": f"{mean:+.4f} ± {half:.4f}", "verdict": verdict(differences)}
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train what is missing")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="which (all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting")
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of training for each run")
    options = parser.parse_args()
    if options.train:
        train_missing(options.settings, options.seeds, options.seconds)
    print(table(read(RESULTS)))


if __name__ == "__main__":
    main()
