"""Scores the tracer's error cards on mutants: does a card name the wrong line, and does its hint mend the module?

    for half in HALVES:
        scores = [score(mutant, half) for mutant in sample(half)]

The card of a failed call (`tr.card`) says `line` and `file` (where it failed), `lines` (each (file, line) it names) and
`fix` (None, or what mends the module: `file`, `line` and `apply(source) -> source`).
"""

import math
import os
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mutants.inputs import CFG, OTHER, STANDARD
from mutants.mutate import Mutant, build, inputs, loaded, source_of
from tools import trace

MAX_LINES = 5  # a card that names more lines than this names none
Outputs = list[Tensor]


@dataclass
class Score:
    """What one mutant's card was worth."""

    mutant: Mutant
    direct: bool = False  # it is the mutated line that fails, not a later one that uses what it made
    headline: bool = False  # the failing line that it gives is the mutated one
    named: bool = False  # the mutated line is among those that it names
    mends: bool = False  # its fix gives the right module's outputs
    crash: str = ""  # what the tracer, or its fix, raised of its own
    text: str = ""  # the card
    fix: str = ""  # the changed lines after the fix
    seconds: float = 0.0  # from the call to the card


def score(mutant: Mutant, half: str) -> Score:
    """Runs a mutant under the tracer and judges its card. What the tracer raises is recorded, not passed on."""
    result = Score(mutant)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "module_under_test.py"
        try:
            card = card_of(mutant, path, result)
            judge(card, mutant, half, path, result)
        except Exception as error:  # a tracer that fails is what is measured here, and counts as a bad card
            result.crash = f"{type(error).__name__}: {error}"
    return result


def card_of(mutant: Mutant, path: Path, result: Score) -> Any:
    """The card of the mutant's failing call. Raises RuntimeError where the tracer changed the error or gave none."""
    with loaded(mutant.source, path) as file:
        arguments = inputs(file, mutant.module)
        expected = plain_error(file, mutant.module, arguments)
        result.direct = failing_line(expected, path) == mutant.line
        module = build(file, mutant.module)
        tr, raised, start = None, None, time.perf_counter()
        try:
            with trace(module, names=CFG) as tr:
                module(*arguments)
        except Exception as error:  # the mutant's own
            raised = error
        result.seconds = time.perf_counter() - start
    if type(raised) is not type(expected) or str(raised) != str(expected):
        raise RuntimeError(f"under the tracer: {raised!r}, without it: {expected!r}") from raised
    if not getattr(raised, "__notes__", None) or raised.__notes__[-1] != str(tr.card):
        raise RuntimeError("the last note of the exception is not the card")
    return tr.card


def plain_error(file, name: str, arguments: tuple[Tensor, ...]) -> Exception | None:
    try:
        build(file, name)(*arguments)
    except Exception as error:  # any
        return error
    return None


def failing_line(error: Exception, path: Path) -> int:
    """The innermost line of the file that the error passed through."""
    return [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)][-1]


def judge(card: Any, mutant: Mutant, half: str, path: Path, result: Score) -> None:
    """Fills in the verdicts; the fix comes last, so that its failure leaves the others standing."""
    result.text = str(card)
    result.headline = same_place((card.file, card.line), path, mutant.line)
    places = {(os.path.realpath(file), line) for file, line in card.lines}
    result.named = len(places) <= MAX_LINES and any(same_place(place, path, mutant.line) for place in places)
    if card.fix is None or os.path.realpath(card.fix.file) != os.path.realpath(path):
        return
    mended = card.fix.apply(mutant.source)
    pairs = enumerate(zip(mutant.source.splitlines(), mended.splitlines()), start=1)
    result.fix = "; ".join(f"{line}: {new.strip()}" for line, (old, new) in pairs if old != new)
    result.mends = gives_same(mended, source_of(half), mutant.module, path)


def same_place(place: tuple[str, int], path: Path, line: int) -> bool:
    return place[1] == line and os.path.realpath(place[0]) == os.path.realpath(path)


def gives_same(mended: str, right: str, name: str, path: Path) -> bool:
    """Whether both sources, built under the same seed, give the same outputs for both sizes of input."""
    try:
        found = outputs(mended, name, path.with_name("mended.py"))
    except Exception:  # the fix does not mend: a verdict, not a fault of the tracer
        return False
    wanted = outputs(right, name, path.with_name("right.py"))
    return len(found) == len(wanted) and all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted)
    )


@torch.no_grad()
def outputs(source: str, name: str, path: Path) -> Outputs:
    """What `name` returns for the standard input and for one of another size."""
    with loaded(source, path) as file:
        module = build(file, name)
        return [tensor for sizes in (STANDARD, OTHER) for tensor in flat(module(*inputs(file, name, sizes)))]


def flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for part in value:
            yield from flat(part)


VERDICTS = ("headline", "named", "mends")


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share. Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209."""
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / 4 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def summary(half: str, scores: list[Score]) -> str:
    """The figures of one half: shares with 95 % intervals, crashes, time per card. Shows nothing of a mutant."""
    direct, modules = sum(s.direct for s in scores), {s.mutant.module for s in scores}
    lines = [f"{half}: {len(scores)} mutants of {len(modules)} modules; {direct} fail on the changed line itself"]
    for verdict in VERDICTS:
        hits = sum(getattr(s, verdict) for s in scores)
        low, high = wilson(hits, len(scores))
        lines.append(f"  {verdict:<9} {hits:3d}  {hits / len(scores):6.1%}  [{low:.1%}, {high:.1%}]")
    seconds = sorted(s.seconds for s in scores)
    lines.append(f"  tracer crashed on {sum(bool(s.crash) for s in scores)}")
    lines.append(f"  seconds per card: median {seconds[len(seconds) // 2]:.2f}, longest {seconds[-1]:.2f}")
    return "\n".join(lines)


def explain(result: Score) -> str:
    """One mutant in full: what was changed, the card, the fix."""
    mutant = result.mutant
    missing = [verdict for verdict in VERDICTS if not getattr(result, verdict)]
    lines = [f"--- {mutant.operator} in {mutant.module}, line {mutant.line}: not {', not '.join(missing)}"]
    lines += [f"  right  {mutant.right.strip()}", f"  wrong  {mutant.wrong.strip()}"]
    lines += [f"  fixed  {result.fix}"] if result.fix else []
    lines += [f"  crash  {result.crash}"] if result.crash else []
    return "\n".join([*lines, *("    " + line for line in result.text.splitlines())])
