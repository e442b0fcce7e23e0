"""How good the tracer's error cards are: 200 wrong modules, made by changing one line of right ones.

    python benchmarks/mutants.py
    python benchmarks/mutants.py --half seen --show     # each mutant whose card fell short, in full

Per half: how many cards give the changed line as the failing one (headline), how many name it at all, in at most five
lines (named), and how many carry a fix that gives the right module's outputs (mends), with 95 % intervals. The hints
were written looking at the seen half only; the figures to quote are those of the unseen one, which is never shown.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]  # before this file's folder, where `mutants` would be this file

import torch  # noqa: E402
from mutants.mutate import HALVES, sample  # noqa: E402
from mutants.score import explain, score, summary  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=[*HALVES, "both"], default="both")
    parser.add_argument("--show", action="store_true", help="print each mutant that fell short (only --half seen)")
    options = parser.parse_args()
    if options.show and options.half != "seen":
        parser.error(f"--show needs --half seen, not {options.half}: the unseen half is not to be looked at")
    torch.set_num_threads(1)
    for half in HALVES if options.half == "both" else [options.half]:
        scores = [score(mutant, half) for mutant in sample(half)]
        if options.show:
            print(*(explain(s) for s in scores if not (s.headline and s.named and s.mends)), "", sep="\n")
        print(summary(half, scores))


if __name__ == "__main__":
    main()
