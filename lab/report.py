"""What `python -m lab.evaluation` does: measures saved models, keeps it in their folders, prints tables and sentences.

    report(["a", "b"], "stories.txt", 500, save=True, comparing=True, pairs=["BLiMP.zip"])

What a folder holds already is not measured again, so that a report which was interrupted goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from lab.breakdown import word_sums
from lab.calibration import calibrate
from lab.compare_models import compare, document_nats, notes, ranking
from lab.evaluation import TOP, markdown, results_of
from lab.kept import text_documents
from lab.minimal_pairs import minimal_pairs_of
from lab.minimal_pairs import table as table_of_pairs
from lab.multiple_choice import multiple_choice_of
from lab.multiple_choice import table as table_of_choices
from lab.positions import loss_by_position
from lab.saving import list_models, model_folder


def report(
    names: Sequence[str],
    text: str,
    documents: int,
    *,
    save: bool = False,
    comparing: bool = False,
    pairs: Sequence[str] = (),
    questions: Sequence[str] = (),
    device: str = "cpu",
    say: Callable[[str], object] = print,
) -> None:
    """Measures and prints. With `save`, all that the evaluation notebook shows is measured and kept, model by model."""
    if not names:
        raise ValueError(f"names: none given; there are: {', '.join(list_models()) or 'none yet'}")
    _check_device(device)
    if text != "auto":
        label, texts = text_documents(text, documents)
        say(f"{label}: the first {len(texts):,} documents")
    if save:
        for number, name in enumerate(names, start=1):
            steps = _steps(name, text, documents, pairs, questions, device)
            say(f"{number}/{len(names)} {name}: " + ", ".join(_timed(steps)))
        calibrate(names, text, documents=documents, save=True)  # adds the baselines, once for each tokenizer
    say(table_of_results(results_of(names, text, max_documents=documents, save=save, device=device)))
    say("Nats, perplexity and top-k are per token: compare them under the same tokenizer only.")
    if comparing:
        result = compare(names, text, documents=documents, with_seeds=False, save=save)
        say(f"\n{ranking(result).to_string()}\n")
        say("\n".join([*notes(result), "", *(pair["sentence"] for pair in result["pairs"])]))
    for path in pairs:
        for name, results in minimal_pairs_of(names, path, save=save, progress=True).items():
            by = next((b for b in ("field", "kind") if b in next(iter(results.values()))["by"]), None)
            say(f"\nMinimal pairs of {name}, in per cent; ~ marks what guessing reaches\n{table_of_pairs(results, by)}")
    if questions:
        results = multiple_choice_of(names, questions, save=save, progress=True)
        say(f"\nMultiple choice, in per cent; ~ marks what guessing reaches\n{table_of_choices(results)}")


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} can't be used here ({reason}): take another, such as cpu") from error


def _steps(name: str, text: str, documents: int, pairs: Sequence[str], questions: Sequence[str], device: str):
    """What is measured of a model: {name of the step: a function that measures and keeps it}."""
    options = {"documents": documents, "save": True}

    def costs_of_documents() -> None:
        if text == "auto":
            compare([name], text, with_seeds=False, **options)
        else:
            label, texts = text_documents(text, documents)
            document_nats(name, texts, label, save=True, progress=True)

    return {
        "scores": lambda: results_of([name], text, max_documents=documents, progress=True, device=device),
        "documents": costs_of_documents,
        "words": lambda: word_sums([[model_folder(name)]], text, documents, counted=name, save=True),
        "positions": lambda: loss_by_position([name], text, with_seeds=False, **options),
        "calibration": lambda: calibrate([name], text, orders=(), **options),
        **{Path(p).name: lambda p=p: minimal_pairs_of([name], p, save=True, progress=True) for p in pairs},
        **{Path(q).name: lambda q=q: multiple_choice_of([name], q, save=True, progress=True) for q in questions},
    }


def _timed(steps: dict[str, Callable[[], object]]) -> Iterator[str]:
    """Takes the steps one after another; says of each how many seconds it took."""
    for step, measure in steps.items():
        started = time.perf_counter()
        measure()
        yield f"{step} {time.perf_counter() - started:.1f} s"


def table_of_results(results: dict[str, dict]) -> str:
    """A table in Markdown of what `results_of` gives: a line for each model."""
    return markdown([
        {
            "model": name,
            "bits/byte": f"{result['bits_per_byte']:.4f}",
            "nats/token": f"{result['nats_per_token']:.4f}",
            "perplexity": f"{result['perplexity']:.2f}",
            **{f"top-{k}": f"{result[f'top{k}']:.1%}" for k in TOP},
            "unknown": f"{result['unknown_tokens']:,}",
            "seconds": f"{result['seconds']:.1f}",
            "text": f"{result['text']} ({result['documents']:,})",
        }
        for name, result in results.items()
    ])  # fmt: skip
