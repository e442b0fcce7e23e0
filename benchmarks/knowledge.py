"""What saved models know: minimal pairs and multiple choice, with the speed of scoring.

    python benchmarks/knowledge.py 2m 0.5m_short_and_thick
    python benchmarks/knowledge.py 2m --most 300              # a quick look

Storyworld's pairs are always there. BLiMP and the multiple-choice sets are read, in their published files, from
../shared/data/evals/ beside the checkout, and left out with a line where they are not.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab import minimal_pairs as pairs
from lab import multiple_choice as choices
from lab.files import ROOT
from lab.saving import load_model

EVALS = ROOT.parent / "shared" / "data" / "evals"
PAIRS = {"blimp/blimp_tinystories_vocab.jsonl": "field", "blimp/BLiMP.zip": "field"}
QUESTIONS = ("mcq/arc_easy_dev.jsonl", "mcq/piqa_dev.jsonl", "mcq/openbookqa_dev.tsv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", help="folders of trained_models/")
    parser.add_argument("--most", type=int, help="pairs and questions of each set, evenly spread; without it, all")
    options = parser.parse_args()
    models = {name: load_model(name)[:2] for name in options.names}
    show_pairs(models, "storyworld", ("kind", "sentences_back"), options.most)
    for name, grouping in PAIRS.items():
        if found(name):
            show_pairs(models, EVALS / name, (grouping,), options.most)
    files = [EVALS / name for name in QUESTIONS if found(name)]
    results = {
        name: [choices.multiple_choice(model, tok, file, max_questions=options.most) for file in files]
        for name, (model, tok) in models.items()
    }
    if files:
        print(f"\n{choices.table(results)}")
    print("\n~: guessing would reach it as well. In percent, with the 95 % interval.")


def found(name: str) -> bool:
    exists = (EVALS / name).exists()
    if not exists:
        print(f"{name} is not beside the checkout: left out", file=sys.stderr)
    return exists


def show_pairs(models: dict, source: str | Path, groupings: tuple[str, ...], most: int | None) -> None:
    """Prints a table for each grouping, and how fast the pairs were scored."""
    results = {name: pairs.minimal_pairs(model, tok, source, max_pairs=most) for name, (model, tok) in models.items()}
    first = next(iter(results.values()))
    print(f"\n{first['name']}: {first['count']:,} pairs, {first['identical']} identical, "
          f"fingerprint {first['fingerprint']}")  # fmt: skip
    for name, result in results.items():
        print(f"{name}: {result['count'] / max(result['seconds'], 0.01):.0f} pairs/s; fewer tokens alone would have "
              f"{result['fewest_tokens']:.1%}; {result['over_context']} texts longer than the context")  # fmt: skip
    for grouping in groupings:
        print(f"\n{pairs.table(results, by=grouping)}")


if __name__ == "__main__":
    main()
