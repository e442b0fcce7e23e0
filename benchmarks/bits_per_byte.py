"""Bits per byte of the shipped models on stories that none of them has seen; prints a table in Markdown.

    python benchmarks/bits_per_byte.py --text ../shared/data/tinystories_valid.txt --documents 500
    python benchmarks/bits_per_byte.py --save          # also keeps each result in the model's evaluation.json

One row per model: bits per byte of its first seed, and lowest and highest of its seeds.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab.evaluation import documents_fingerprint, evaluate_saved, markdown, text_documents
from lab.files import ROOT
from lab.plots import compare_table, with_seeds
from lab.saving import list_models

MODELS = (
    "0.5m_short_and_thick", "0.5m_5foot11_and_skinnyfat", "0.5m_tall_and_skinny", "0.5m_short_and_thick-round2", "0.5m",
    "2m",
)  # fmt: skip
TEXT = ROOT.parent / "shared" / "data" / "tinystories_valid.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default=str(TEXT), help="a file of stories, each ended by a line <|endoftext|>")
    parser.add_argument("--documents", type=int, default=500, help="how many stories from its start")
    parser.add_argument("--save", action="store_true", help="keep the results in the models' folders")
    options = parser.parse_args()
    text, documents = text_documents(options.text, options.documents)
    print(f"{text}, first {len(documents):,} stories, fingerprint {documents_fingerprint(documents)}\n")
    rows = []
    for family in MODELS:
        if family not in list_models():
            print(f"{family} is not in trained_models/", file=sys.stderr)
            continue
        names = with_seeds([family])
        results = [evaluate_saved(name, documents, text=text, save=options.save) for name in names]
        rows.append(row(family, compare_table(names), results))
    if not rows:
        sys.exit("none of these models is in trained_models/: " + ", ".join(MODELS))
    print(markdown(rows))


def row(family: str, table, results: list[dict]) -> dict[str, str]:
    """What one model's line of the table says. table: `compare_table` of its seeds; results: theirs, in that order."""
    bits = [result["bits_per_byte"] for result in results]
    return {
        "model": family,
        "parameters": f"{table['parameters'].iloc[0]:,}",
        "tokens seen": f"{table['tokens seen'].iloc[0] / 1e6:.1f} M",
        "epochs": f"{table['epochs'].iloc[0]:.1f}",
        "training": f"{table['seconds'].median() / 60:.0f} min",
        "bits/byte": f"{bits[0]:.4f}",
        "seeds": f"{min(bits):.4f} to {max(bits):.4f} ({len(bits)})" if len(bits) > 1 else "1",
        "top-1": f"{results[0]['top1']:.1%}",
    }


if __name__ == "__main__":
    main()
