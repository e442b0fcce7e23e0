"""Every named recipe at debug size: parameters, FLOPs, decode state, and how it learns, in one table and one picture.

    python benchmarks/recipes.py                      # the table, from benchmarks/recipes.csv
    python benchmarks/recipes.py --train              # trains each afresh first (about 10 minutes on one core)
    python benchmarks/recipes.py --blocks             # the table of all blocks, read off their docstrings

Each is trained for the same number of steps on the same batches of the built-in stories, with one seed: the curves
show that a recipe learns, not which is best. The picture goes to docs/recipes.png.
"""

import argparse
import csv
import inspect
import re
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import PRESETS, RECIPES, ModelConfig, TrainConfig
from lab import data
from lab.evaluation import evaluate, markdown
from lab.files import ROOT, shown
from lab.runs import count_parameters
from lab.tracer.cost import flops
from model import GPT
from tokenizer import get_tokenizer
from tools import trace
from train import make_step

CURVES = Path(__file__).with_suffix(".csv")
STEPS, EVERY, BATCH, DOCUMENTS = 600, 60, 16, 60


def settings(steps: int) -> TrainConfig:
    return TrainConfig(dataset="storyworld", batch_size=BATCH, max_iters=steps, device="cpu", num_threads=1)


def with_memory(model: GPT) -> GPT:
    """Gives cross-attention something to look at: eight fixed random vectors, the same for every row."""
    bank = torch.randn(8, model.cfg.dim, generator=torch.Generator().manual_seed(0))
    plain = model.context

    def context(tokens: torch.Tensor, **options: object):
        ctx = plain(tokens, **options)
        ctx.memory = bank.expand(len(tokens), -1, -1)
        return ctx

    model.context = context
    return model


def curve(name: str, cfg: ModelConfig, steps: int) -> list[dict]:
    """Bits per byte on validation stories every few steps, and the seconds of training up to there."""
    tcfg, tok = settings(steps), get_tokenizer(cfg.vocab_size)
    source = data.open_source(tcfg.dataset, limit_bytes=2_000_000)
    batches = data.Batches(data.tokenize(source, "train", tok), batch_size=BATCH, seq_len=cfg.max_seq_len, seed=1)
    documents = data.validation_documents(source, DOCUMENTS)
    step, rows, seconds = make_step(cfg, tcfg, "cpu"), [], 0.0
    with_memory(step.model)
    for done in range(steps + 1):
        if done % EVERY == 0:
            bits = evaluate(step.model, tok, documents)["bits_per_byte"]
            rows.append({"recipe": name, "step": done, "seconds": round(seconds, 2), "bits_per_byte": round(bits, 4)})
        if done < steps:
            begun = time.perf_counter()
            step(*batches.get(done))
            seconds += time.perf_counter() - begun
    return rows


def costs(cfg: ModelConfig) -> dict[str, int]:
    """Parameters, FLOPs per token of a forward pass over a whole context, numbers kept per row while decoding."""
    model, T = with_memory(GPT(cfg)), cfg.max_seq_len
    tokens = torch.zeros(1, T, dtype=torch.int64)
    with torch.no_grad(), trace(model, names=cfg, probe=False) as tr:
        model(tokens)
    ctx = model.context(tokens, decode=True)
    with torch.no_grad():
        for t in range(T):  # one by one, as when a text is written
            model(tokens[:, t : t + 1], ctx)
    kept = sum(t.numel() for t in _tensors(ctx.cache))
    return {"parameters": count_parameters(model)["total"], "flops": flops(tr.calls[0]) // T, "state": kept}


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def table(rows: list[dict]) -> str:
    """The table for the README."""
    lines = []
    for name, recipe in RECIPES.items():
        cfg = PRESETS[f"debug_{name}"]
        last = next((r for r in reversed(rows) if r["recipe"] == name), {})
        cost = costs(cfg)
        lines.append({
            "recipe": name, "text": f"`{recipe}`".replace("|", "\\|"), "parameters": f"{cost['parameters']:,}",
            "FLOPs/token": f"{cost['flops']:,}", "decode state/row": f"{cost['state']:,}",
            "bits/byte": str(last.get("bits_per_byte", "–")), "seconds": str(last.get("seconds", "–")),
        })  # fmt: skip
    return markdown(lines)


def picture(rows: list[dict]) -> None:
    """Bits per byte against steps, one curve for each recipe."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    ax = figure.subplots()
    for i, name in enumerate(dict.fromkeys(row["recipe"] for row in rows)):
        own = [row for row in rows if row["recipe"] == name and int(row["step"]) > 0]
        steps, bits = [int(row["step"]) for row in own], [float(row["bits_per_byte"]) for row in own]
        ax.plot(steps, bits, label=name, color=f"C{i % 10}", linestyle="-" if i < 10 else "--")
    ax.set(xlabel="step", ylabel="bits per byte", title="Named recipes at debug size, one seed each")
    ax.grid(alpha=0.3)
    ax.legend(ncols=2, fontsize=8)
    figure.savefig(ROOT / "docs" / "recipes.png", dpi=110)


def blocks_table() -> str:
    """Name and arguments of every block, what it does in a line, and the papers that its docstring names."""
    import blocks  # noqa: F401 registers the catalogue
    from model import LAYERS

    lines = ["| block | what it does | source |", "|---|---|---|"]
    for name, cls in LAYERS.items():
        parameters = list(inspect.signature(cls.__init__).parameters.values())[2:]
        own = ", ".join(f"{p.name}={_default(p.default)}" for p in parameters if p.name != "inner")
        inner = "{…}" if any(p.name == "inner" for p in parameters) else ""
        text = inspect.getdoc(cls)
        summary = " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
        papers = list(dict.fromkeys(re.findall(r"arXiv\s+(\d{4}\.\d{4,5})", text)))
        call = f"{name}({own})" if own else name
        lines.append(f"| `{call}{inner}` | {summary} | {', '.join(f'arXiv {paper}' for paper in papers)} |")
    return "\n".join(lines)


def _default(value: object) -> str:
    words = {None: "none", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return f"{value:g}" if isinstance(value, int | float) else f'"{value}"'


def _write(rows: list[dict]) -> None:
    with CURVES.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", nargs="*", default=list(RECIPES), help="train these afresh and keep the others")
    options = parser.parse_args()
    if options.blocks:
        print(blocks_table())
        return
    torch.set_num_threads(1)
    rows = list(csv.DictReader(CURVES.open())) if CURVES.exists() else []
    for name in options.only if options.train else ():
        fresh = curve(name, PRESETS[f"debug_{name}"], options.steps)
        print(f"{name}: {fresh[-1]['bits_per_byte']} bits/byte after {fresh[-1]['seconds']} s", flush=True)
        rows = [row for row in rows if row["recipe"] != name] + fresh
        _write(rows)
    if not rows:
        sys.exit(f"{shown(CURVES)} is missing: run with --train")
    picture(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
