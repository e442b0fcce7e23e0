"""Does a capability card tell which architecture will model text well? Card scores beside TinyStories, at equal size.

    python benchmarks/probes.py                                     # table, correlations, docs/probes.png, from the CSV
    python benchmarks/probes.py --train                             # measures what is missing first; stop at any time
    python benchmarks/probes.py --train --text-seeds 2              # and a second run of each recipe on the text
    python benchmarks/probes.py --train --only tinystories          # the text alone, or: --only cards
    python benchmarks/probes.py --train --recipes attention Mamba --seconds 5               # less of it
    python benchmarks/probes.py --steps 1000                                                # after a third of the text
    python benchmarks/probes.py --without "MLP only" "no positions" "token shift" conv      # among the better ones

Every recipe gets as many parameters as the first one, within 3 %, by the width of its MLP. Its card is that of
lab/probes (2 layers of width 64), with one seed at each of the quick card's rates. Its bits per byte are those of
4 layers of width 64 with 2,048 pieces after the same number of tokens of TinyStories' training text, on stories of
that text which are held out. The rank correlation (Spearman) is between the two, over recipes; its interval comes from
drawing the recipes anew (bootstrap).
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ablations import TEXT, batches_for, open_text
from benchmarks.rows import append, read
from config import ModelConfig, TrainConfig
from lab.evaluation import evaluate, markdown
from lab.files import ROOT, shown
from lab.probes import PROTOCOL, TASKS, Settings, probe
from lab.runs import count_parameters
from model import GPT
from train import keep_memory, make_step

RESULTS = Path(__file__).with_suffix(".csv")
BASE = ModelConfig(dim=64, num_layers=4, vocab_size=2048, max_seq_len=256, qk_norm=True)
BATCH, STEPS, DOCUMENTS = 4, 3000, 200  # rows of 256 tokens, steps, held-out stories
CLOSE = 0.03  # parameters may differ by this share
RESAMPLES = 4_000

MLP = "->+->Norm->MLP->+"
RECIPES = {  # name -> what is changed in BASE
    "attention": {},
    "all heads": {"num_kv_heads": 4},
    "one kv head": {"num_kv_heads": 1},
    "no positions": {"positions": "none"},
    "learned positions": {"positions": "learned"},
    "ALiBi": {"positions": "alibi"},
    "no QK-norm": {"qk_norm": False},
    "LayerNorm": {"norm_type": "LayerNorm"},
    "ReLU² MLP": {"mlp_gated": False, "mlp_nonlinearity": "relu2"},
    "window 8": {"recipe": f"Norm->Attn(window=8){MLP}"},
    "window 16": {"recipe": f"Norm->Attn(window=16){MLP}"},
    "window 32": {"recipe": f"Norm->Attn(window=32){MLP}"},
    "window 8, full": {"recipe": f"Norm->Attn(window=cyc(8,none)){MLP}"},
    "conv, attention": {"recipe": f"Norm->ShortConv(residual=true)->Attn{MLP}"},
    "conv before both": {"recipe": "Norm->ShortConv(residual=true)->Attn->+->Norm->ShortConv(residual=true)->MLP->+"},
    "conv": {"recipe": f"Norm->ShortConv{MLP}"},
    "token shift": {"recipe": "Norm->TokenShift->MLP->+"},
    "MLP only": {"recipe": "Norm->MLP->+"},
    "RG-LRU": {"recipe": f"Norm->RGLRU{MLP}"},
    "Mamba": {"recipe": f"Norm->Mamba(expand=1){MLP}"},
    "Mamba-2": {"recipe": f"Norm->Mamba2(expand=1){MLP}"},
    "gated DeltaNet": {"recipe": f"Norm->GatedDeltaNet(expand=1){MLP}"},
    "CEMA": {"recipe": f"Norm->CEMA{MLP}"},
    "RG-LRU, attention": {"recipe": f"Norm->RGLRU(width=48)->+->Norm->Attn{MLP}"},
    "attention, RG-LRU": {"recipe": f"Norm->Attn->+->Norm->RGLRU(width=48){MLP}"},
    "RG-LRU, window 8": {"recipe": f"Norm->RGLRU(width=48)->+->Norm->Attn(window=8){MLP}"},
    "DeltaNet, attention": {"recipe": f"Norm->GatedDeltaNet(heads=2,expand=1)->+->Norm->Attn{MLP}"},
    "parallel": {"recipe": "Norm->[Attn|MLP]->+"},
    "post-norm": {"recipe": "Attn->+->Norm->=->MLP->+->Norm"},
    "sandwich": {"post_norm": True},
    "value residual": {"recipe": f"Norm->ValueResidualAttn{MLP}"},
    "gated attention": {"recipe": f"Norm->GatedAttn{MLP}"},
    "differential": {"recipe": f"Norm->DiffAttn{MLP}"},
    "MLA": {"recipe": f"Norm->MLA{MLP}"},
    "experts": {"recipe": "Norm->Attn->+->Norm->MoE->+"},
}


# ---------------------------------------------------------------- equal sizes


def parameters(cfg: ModelConfig) -> int:
    with torch.random.fork_rng(devices=[]):
        return count_parameters(GPT(cfg))["total"]


def fitted(name: str) -> ModelConfig:
    """The recipe with the MLP width that brings it nearest to the first recipe's parameters.

    They grow by the same number with each unit of width, so that two sizes tell all others. Raises ValueError where no
    width comes within CLOSE.
    """
    wanted, cfg = parameters(BASE), BASE.replace(**RECIPES[name])
    one, two = (parameters(cfg.replace(mlp_hidden=width)) for width in (8, 16))
    width = max(1, 8 + round((wanted - one) * 8 / (two - one)))
    cfg = cfg.replace(mlp_hidden=width)
    if abs(parameters(cfg) / wanted - 1) > CLOSE:
        raise ValueError(f"{name}: {parameters(cfg):,} parameters with mlp_hidden={width}, not {wanted:,}")
    return cfg


# ---------------------------------------------------------------- measuring


def learn_text(name: str, seed: int, steps: int) -> list[dict]:
    """Bits per byte on held-out stories after `steps` steps; nan where training diverged."""
    cfg = fitted(name)
    step = make_step(cfg, TrainConfig(batch_size=BATCH, max_iters=steps, seed=seed, device="cpu", num_threads=1), "cpu")
    batches, text, begun = batches_for(step, BATCH, seed), open_text(cfg.vocab_size), time.process_time()
    try:
        for i in range(steps):
            step(*batches.get(i))
        spent = time.process_time() - begun
        bits = evaluate(step.model, text.tok, text.held_out[:DOCUMENTS])["bits_per_byte"]
    except FloatingPointError as error:
        print(f"{name}, seed {seed}: {error}")
        spent, bits = time.process_time() - begun, math.nan
    return [row(name, "tinystories", text_settings(steps), seed, "bits per byte", bits, cfg, spent)]


def take_card(name: str, settings: Settings, workers: int) -> list[dict]:
    """The card's score in each task, seed by seed."""
    cfg = fitted(name)
    card = probe(cfg, settings=settings, workers=workers)
    rows = []
    for task, found in card.tasks.items():
        spent = sum(run["cpu_seconds"] for run in found["runs"]) / len(found["by_seed"])
        for seed, score in enumerate(found["by_seed"]):
            rows.append(row(name, "card", card_settings(settings), seed, task, score, cfg, spent))
    return rows


def row(name: str, kind: str, settings: str, seed: int, measure: str, value: float, cfg: ModelConfig, spent: float):
    return {
        "recipe": name, "kind": kind, "settings": settings, "seed": seed, "measure": measure, "value": round(value, 4),
        "parameters": parameters(cfg), "cpu_seconds": round(spent, 1),
    }  # fmt: skip


def text_settings(steps: int) -> str:
    return f"{steps * BATCH * BASE.max_seq_len} tokens"


def card_settings(settings: Settings) -> str:
    rates = " ".join(f"{rate:g}" for rate in settings.rates)
    return f"protocol {PROTOCOL}: {settings.seconds:g} s; {settings.seeds} seeds; rates {rates}"


def measure_missing(options: argparse.Namespace, settings: Settings) -> None:
    """Adds to the results what they lack for these settings."""
    torch.set_num_threads(1)
    keep_memory()
    done = {(r["recipe"], r["settings"], r["seed"], r["measure"]) for r in read(RESULTS)}
    last = str(settings.seeds - 1), list(TASKS)[-1]  # the row that completes a card
    for name in options.recipes:
        if options.only != "cards":
            for seed in range(options.text_seeds):
                if (name, text_settings(options.steps), str(seed), "bits per byte") not in done:
                    keep_rows(learn_text(name, seed, options.steps))
        if options.only != "tinystories" and (name, card_settings(settings), *last) not in done:
            keep_rows(take_card(name, settings, options.workers))


def keep_rows(rows: list[dict]) -> None:
    for own in rows:
        append(RESULTS, own)
    print(", ".join([rows[0]["recipe"], *(f"{own['measure']} {own['value']:.3f}" for own in rows)]), flush=True)


# ---------------------------------------------------------------- what it says


def scores(rows: list[dict], steps: int, settings: Settings) -> dict[str, dict[str, float]]:
    """recipe -> measure -> mean over seeds, with "card" as the mean over tasks; recipes that have both alone."""
    wanted = {text_settings(steps), card_settings(settings)}
    values: dict[str, dict[str, list[float]]] = {}
    for r in rows:
        if r["settings"] in wanted:
            values.setdefault(r["recipe"], {}).setdefault(r["measure"], []).append(float(r["value"]))
    means = {name: {m: statistics.mean(own) for m, own in of.items()} for name, of in values.items()}
    whole = {name: of for name, of in means.items() if all(m in of for m in ("bits per byte", *TASKS))}
    return {name: of | {"card": statistics.mean(of[task] for task in TASKS)} for name, of in whole.items()}


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equals share the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of two columns' ranks, -1 to 1; 0 where one of them says the same everywhere."""
    a, b = ranks(a), ranks(b)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def correlation(a: np.ndarray, b: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """Spearman's rank correlation with the ends of its 95 % interval: recipes drawn anew, with replacement."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(a), size=(resamples, len(a)))
    low, high = np.quantile([spearman(a[drawn], b[drawn]) for drawn in draws], (0.025, 0.975))
    return spearman(a, b), float(low), float(high)


def correlations(found: dict[str, dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """card and each task -> correlation with fewer bits per byte: above 0 where a better card goes with better text."""
    usable = [of for of in found.values() if math.isfinite(of["bits per byte"])]
    bits = np.array([of["bits per byte"] for of in usable])
    return {m: correlation(np.array([of[m] for of in usable]), -bits) for m in ("card", *TASKS)}


def luck(rows: list[dict], names: Collection[str], steps: int) -> str:
    """What the text's own seeds do to these recipes: how well a second run of the same training ranks them."""
    bits: dict[str, dict[str, float]] = {}
    for r in rows:
        if r["recipe"] in names and r["settings"] == text_settings(steps):
            bits.setdefault(r["recipe"], {})[r["seed"]] = float(r["value"])
    pairs = {name: (own["0"], own["1"]) for name, own in bits.items() if {"0", "1"} <= own.keys()}
    if len(pairs) < 3:
        return "Text: one run of each recipe."
    apart = {name: abs(a - b) for name, (a, b) in pairs.items()}
    worst = max(apart, key=apart.__getitem__)
    value, low, high = correlation(*np.array(list(pairs.values())).T)
    return (
        f"Text, seed 0 against seed 1 of {len(pairs)} recipes: rank correlation {value:.2f} ({low:.2f} to {high:.2f}), "
        f"{statistics.median(apart.values()):.4f} bits per byte apart (median), at most {apart[worst]:.4f} ({worst})"
    )


def table(found: dict[str, dict[str, float]]) -> str:
    """Best text first."""
    lines = []
    for name, of in sorted(found.items(), key=lambda item: item[1]["bits per byte"]):
        tasks = {TASKS[task].title: f"{100 * of[task]:.0f}" for task in TASKS}
        lines.append(
            {"recipe": name, "bits/byte": f"{of['bits per byte']:.4f}", "card": f"{100 * of['card']:.1f}"} | tasks
        )
    return markdown(lines)


def picture(found: dict[str, dict[str, float]], rho: dict[str, tuple[float, float, float]], path: Path) -> None:
    """A row for each recipe, best text first, with its card's score; beside it, what each task says by itself."""
    import matplotlib.pyplot as plt

    from lab.plots import PALETTE, STYLE

    names = [name for name in found if math.isfinite(found[name]["bits per byte"])]  # without those that diverged
    names.sort(key=lambda name: found[name]["bits per byte"])
    with plt.rc_context(STYLE):
        figure, (ax, side) = plt.subplots(
            1, 2, figsize=(11, 1.6 + 0.22 * len(names)), layout="constrained", width_ratios=(3, 2)
        )
    for row, name in enumerate(names):
        score = 100 * found[name]["card"]
        ax.plot([0, score], [row, row], color="#E4E4E4", linewidth=1, zorder=1)
        ax.plot(score, row, "o", color=PALETTE[0], markersize=6)
        bits = f"{found[name]['bits per byte']:.3f}"
        ax.text(1.02, row, bits, transform=ax.get_yaxis_transform(), va="center", fontsize=8.5)
    ax.text(1.02, -1.1, "bits/byte", transform=ax.get_yaxis_transform(), va="center", fontsize=8.5)
    ax.set_yticks(range(len(names)), names, fontsize=8.5)
    ax.grid(False, axis="y")
    ax.set(xlim=(0, 103), ylim=(len(names) - 0.4, -0.6), xlabel="card's score: mean accuracy over the tasks (per cent)")
    value, low, high = rho["card"]
    ax.set_title(
        f"{len(names)} recipes of equal size, the best at text first\n"
        f"rank correlation with the card {value:.2f} (95 %: {low:.2f} to {high:.2f})",
        fontsize=10, loc="left",
    )  # fmt: skip
    order = sorted(TASKS, key=lambda task: rho[task][0])
    for line, task in enumerate([*order, "card"]):
        value, low, high = rho[task]
        side.plot([low, high], [line] * 2, color=PALETTE[1] if task == "card" else "#8C8C8C", linewidth=2)
        side.plot(value, line, "o", color=PALETTE[1] if task == "card" else PALETTE[0], markersize=7)
    side.axvline(0, color="black", linewidth=0.8)
    side.set_yticks(range(len(order) + 1), [*(TASKS[task].title for task in order), "whole card"])
    side.set(xlim=(-1, 1), xlabel="rank correlation (95 %)")
    side.set_title("Better at the task, better at text?", fontsize=10, loc="left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="measure what is missing")
    parser.add_argument("--only", choices=("tinystories", "cards"), help="one of the two")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), help="which (all)")
    parser.add_argument("--without", nargs="+", choices=RECIPES, default=[], help="recipes to leave out")
    parser.add_argument("--seconds", type=float, default=15.0, help="CPU seconds of each of the card's runs, at most")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the card (the quick card itself has 2)")
    parser.add_argument("--rates", type=float, nargs="+", default=list(Settings().rates), help="rates of the card")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of {BATCH * BASE.max_seq_len} tokens of text")
    parser.add_argument("--text-seeds", type=int, default=1, help="runs of each recipe on the text")
    parser.add_argument("--workers", type=int, default=2, help="processes that train the card's copies")
    parser.add_argument("--picture", type=Path, help="where to draw (docs/probes.png, if no option is given)")
    options = parser.parse_args()
    options.recipes = [name for name in options.recipes if name not in options.without]
    settings = Settings(options.seconds, options.seeds, tuple(options.rates))
    if options.train:
        if options.only != "cards" and not TEXT.exists():
            sys.exit(f"{TEXT.name} is not beside the checkout: --only cards, or put it into {TEXT.parent.name}/")
        measure_missing(options, settings)
    rows = [r for r in read(RESULTS) if r["recipe"] in options.recipes]
    found = scores(rows, options.steps, settings)
    if len(found) < 3:
        sys.exit(
            f"{shown(RESULTS)} holds {len(found)} recipes with card and text of these settings: start with --train"
        )
    rho = correlations(found)
    if options.picture or len(sys.argv) == 1:
        picture(found, rho, options.picture or ROOT / "docs" / "probes.png")
    print(table(found) + "\n")
    for name, (value, low, high) in rho.items():
        print(f"{'whole card' if name == 'card' else TASKS[name].title}: {value:.2f} ({low:.2f} to {high:.2f})")
    print(luck(rows, found, options.steps))


if __name__ == "__main__":
    main()
