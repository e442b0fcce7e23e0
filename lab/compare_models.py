"""Which of these models is better, by how much, and how sure that is.

    result = compare(["a", "b"], text="stories.txt")   # with all runs of each: a, a-seed2, a-seed3, ...
    result["pairs"][0]["sentence"]                     # "a is better than b by 0.0120 ± 0.0040 bits per byte (...)"
    ranking(result)                                    # a table that ranks nothing inside the noise

All models are scored on the same documents by the protocol of lab/evaluation.py. A difference is (nats of A - nats of
B) / ln 2 / bytes, so below 0 where A is better, and its uncertainty has two sources:

    documents   other stories would have given another figure. Documents are drawn anew, with replacement, thousands of
                times, the same ones for both models (paired bootstrap); `few_documents` widens for few
    seeds       another training run of the same architecture would have given another model. It can be seen only where
                there are several runs: `name`, `name-seed2`, `name-seed3`, ...

How the two are put together is said by `method` in each result:

    "documents"   one run of each model: documents only. It tells which of two trained models is better, and nothing
                  about another run of the same two architectures
    "t"           few runs: the variance of the mean over seeds, from the runs' own means, is added to the variance over
                  documents, and Student's t (Welch's degrees of freedom) makes the interval as wide as few runs demand.
                  Where only one of the two has several runs, the other is taken to vary as much
    "bootstrap"   at least MANY_SEEDS runs of each: seeds and documents are both drawn anew (hierarchical bootstrap)

Intervals are symmetric, estimate ± half_width (Hall 1988, "On symmetric bootstrap confidence intervals"), so that "no
difference beyond noise" and an interval that holds 0 are the same thing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from lab.files import read_json
from lab.intervals import draw_documents, symmetric_width, t_quantile, widen
from lab.kept import (
    Text,
    check_names,
    choose_text,
    given_text,
    kept,
    own_validation,
    text_documents,
    weights_of,
)  # fmt: skip
from lab.plots import Run, family_of, read_run
from lab.saving import list_models, load_model
from lab.scoring import predictions_of, strip_newlines

if TYPE_CHECKING:
    from pandas import DataFrame

PROTOCOL = 2  # rises whenever the same model and text would cost another figure, or be kept in another form
MANY_SEEDS = 10  # from so many runs on, seeds are drawn anew; below, Student's t


# ---------------------------------------------------------------- the statistics, on plain arrays


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    num_bytes: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> dict:
    """Bits per byte of A minus those of B with its interval, as the head of this file describes.

    a, b: nats of each document under each run, (runs of A, documents) and (runs of B, documents); one run may come as
    (documents,).  num_bytes: of each document.  weights: from `draw_documents`, to use the same for many differences.
    Returns {"difference", "half_width", "low", "high", "told_apart", "method", "seeds": [runs of A, runs of B]}.
    Where only one document holds any byte, the interval has no end: `half_width` is infinite, nothing is told apart.
    Raises: ValueError for shapes that do not fit, or fewer than two documents.
    """
    a, b, num_bytes = np.atleast_2d(a).astype(float), np.atleast_2d(b).astype(float), np.asarray(num_bytes, float)
    _check_arrays(a, b, num_bytes, level)
    drawn = draw_documents(len(num_bytes), resamples, seed) if weights is None else weights
    estimate = _bits(a, num_bytes).mean() - _bits(b, num_bytes).mean()
    method = "documents" if len(a) == len(b) == 1 else "bootstrap" if min(len(a), len(b)) >= MANY_SEEDS else "t"
    half = {"documents": half_by_documents, "t": half_by_t, "bootstrap": half_by_bootstrap}[method]
    width = float(half(a, b, num_bytes, drawn, level, seed)) if holding(num_bytes) > 1 else math.inf
    return {
        "difference": float(estimate),
        "half_width": width,
        "low": float(estimate - width),
        "high": float(estimate + width),
        "told_apart": bool(abs(estimate) > width),
        "method": method,
        "seeds": [len(a), len(b)],
    }


def _check_arrays(a: np.ndarray, b: np.ndarray, num_bytes: np.ndarray, level: float) -> None:
    if not a.shape[1] == b.shape[1] == len(num_bytes):
        raise ValueError(
            f"a has {a.shape[1]} documents, b {b.shape[1]}, num_bytes {len(num_bytes)}: score both models on the same"
        )
    if len(num_bytes) < 2:
        raise ValueError(f"documents={len(num_bytes)} must be at least 2, or nothing can be said about their spread")
    if not 0 < level < 1:
        raise ValueError(f"level={level} must lie between 0 and 1, as 0.95 does")


def _bits(nats: np.ndarray, num_bytes: np.ndarray) -> np.ndarray:
    """Bits per byte of each run over all documents: (runs, D) -> (runs,)."""
    return nats.sum(-1) / math.log(2) / num_bytes.sum()


def _drawn_bits(nats: np.ndarray, num_bytes: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The same in each resample: nan where all that was drawn holds no byte: (runs, D) -> (resamples, runs)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (drawn @ nats.T) / math.log(2) / (drawn @ num_bytes)[:, None]


def holding(num_bytes: np.ndarray) -> int:
    """How many documents hold any byte: of words of one kind, it may be few."""
    return int(np.count_nonzero(num_bytes))


def few_documents(num_bytes: np.ndarray, level: float) -> float:
    """What a bootstrap's width is multiplied with, since few documents show too little of their spread.

    Their own mean is nearer to them than the true one (`widen`), and their spread is a guess itself: Student's t over
    the normal distribution's quantile. For 500 documents 1.003, for 16 1.12, for 2 9.
    """
    count = holding(num_bytes)
    return widen(count) * t_quantile(level, count - 1) / NormalDist().inv_cdf((1 + level) / 2)


def half_by_documents(a, b, num_bytes, drawn, level, seed) -> float:
    """Half the interval's width where documents are the only source of noise that can be seen."""
    difference = a.mean(0) - b.mean(0)
    estimate = difference.sum() / math.log(2) / num_bytes.sum()
    deviations = _drawn_bits(difference[None], num_bytes, drawn)[:, 0] - estimate
    return symmetric_width(deviations, level) * few_documents(num_bytes, level)


def half_by_t(a, b, num_bytes, drawn, level, seed) -> float:
    """Student's t over the seeds' means, the documents' variance added (Welch 1947 for the degrees of freedom)."""
    difference = a.mean(0) - b.mean(0)
    of_documents = np.nanvar(_drawn_bits(difference[None], num_bytes, drawn)) * widen(holding(num_bytes)) ** 2
    spreads = [_bits(x, num_bytes).var(ddof=1) if len(x) > 1 else None for x in (a, b)]
    known = next(spread for spread in spreads if spread is not None)
    parts = [(of_documents, holding(num_bytes) - 1)]
    if None in spreads:  # one variance, used twice: no more degrees of freedom than the runs that showed it
        parts.append((known / len(a) + known / len(b), max(len(a), len(b)) - 1))
    else:
        parts += [(spread / len(x), len(x) - 1) for spread, x in zip(spreads, (a, b))]
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / n for variance, n in parts)
    return t_quantile(level, freedom) * math.sqrt(total)


def half_by_bootstrap(a, b, num_bytes, drawn, level, seed) -> float:
    """Seeds and documents drawn anew; the deviations of drawn seeds are widened as `widen` says."""
    generator, resamples = np.random.default_rng((seed, 1)), len(drawn)
    estimates = []
    for nats in (a, b):
        n = len(nats)
        shares = generator.multinomial(n, [1 / n] * n, size=resamples) / n
        shares = 1 / n + widen(n) * (shares - 1 / n)
        estimates.append((shares * _drawn_bits(nats, num_bytes, drawn)).sum(-1))
    estimate = _bits(a, num_bytes).mean() - _bits(b, num_bytes).mean()
    return symmetric_width(estimates[0] - estimates[1] - estimate, level) * few_documents(num_bytes, level)


# ---------------------------------------------------------------- saved models


def compare(
    names: Sequence[str | Path],
    text: str = "auto",
    *,
    documents: int = 300,
    with_seeds: bool = True,
    save: bool = False,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    progress: bool = False,
) -> dict:
    """Compares saved models on the same documents; returns a dict that JSON can hold.

    text: a path, or a name as in `text_documents`, of which the first `documents` are taken. "auto" is the text that
    all these models were scored on already, which need not be here, else the validation text of the first's training.
    with_seeds: add each model's further runs (`name-seed2`, ...) from the same folder.
    save: keep what each document cost in the models' evaluation.json; what is kept there is never computed again.
    Returns {"protocol", "text", "fingerprint", "documents", "bytes", "level", "models", "pairs"}:
        models   family -> runs, bits_per_byte (mean over runs), each run's, tokenizer, trained_on, `marks` (what a
                 reader must know before comparing), rank [best, worst] that the noise leaves open, group (letters:
                 models that share one cannot be told apart); best first
        pairs    for each two models what `paired_difference` returns, and a `sentence`
    Raises: ValueError if fewer than two documents or no model is given; FileNotFoundError for one that isn't there.
    """
    families = find_runs(names, with_seeds)
    folders = [run.folder for runs in families.values() for run in runs]
    chosen = choose_text(folders, text, documents, "documents", {"protocol": PROTOCOL})
    first = next(iter(families.values()))[0]
    nats, models = {}, {}
    for family, runs in families.items():
        records = [_document_record(run.folder, chosen, save, progress) for run in runs]
        nats[family] = np.array([record["nats"] for record in records])
        num_bytes = np.array(records[0]["bytes"])  # the same for all: they are of the text
        models[family] = {
            "runs": [run.name for run in runs],
            "bits_per_byte": float(_bits(nats[family], num_bytes).mean()),
            "each_run": [round(float(bits), 6) for bits in _bits(nats[family], num_bytes)],
            "tokenizer": runs[0].tokenizer,
            "trained_on": runs[0].text,
            "marks": _marks(runs, first, records),
        }
    models = dict(sorted(models.items(), key=lambda item: item[1]["bits_per_byte"]))
    drawn = draw_documents(len(num_bytes), resamples, seed)
    order = list(models)
    pairs = []
    for i, a in enumerate(order):
        for b in order[i + 1 :]:
            found = paired_difference(nats[a], nats[b], num_bytes, level=level, seed=seed, weights=drawn)
            pairs.append({"a": a, "b": b, **found, "sentence": sentence(a, b, found, level)})
    rank_models(models, pairs)
    return {
        "protocol": PROTOCOL, "text": chosen.name, "fingerprint": chosen.fingerprint, "documents": len(num_bytes),
        "bytes": int(num_bytes.sum()), "level": level, "resamples": resamples, "models": models, "pairs": pairs,
    }  # fmt: skip


def find_runs(names: Sequence[str | Path], with_seeds: bool = True) -> dict[str, list[Run]]:
    """The runs of each model by family, in the order given; further seeds are looked for in the same folder.

    Raises: ValueError for no name, or for two folders of one name; FileNotFoundError for one that isn't there.
    """
    if isinstance(names, str | Path) or not names:
        raise ValueError(f"names={names!r} must be a list of at least one model, such as ['a', 'b']")
    runs = []
    for run in map(read_run, names):
        runs.append(run)
        if with_seeds and run.name == run.family:
            others = (name for name in list_models(run.folder.parent) if family_of(name) == run.family)
            runs += [read_run(run.folder.parent / name) for name in others]
    check_names([run.folder for run in runs])
    families: dict[str, dict[str, Run]] = {}
    for run in runs:
        families.setdefault(run.family, {})[run.name] = run
    return {family: list(members.values()) for family, members in families.items()}


def runs_of(names: Sequence[str | Path], with_seeds: bool = True) -> list[Run]:
    """The same runs one after another."""
    return [run for members in find_runs(names, with_seeds).values() for run in members]


def choose_documents(first: str | Path, text: str, documents: int) -> tuple[str, list[str]]:
    """Name and documents of a text, which must be here; "auto": the validation text of the first model's training."""
    return own_validation(first, documents) if text == "auto" else text_documents(text, documents)


def document_nats(
    name: str | Path, documents: Sequence[str], label: str, *, save: bool = False, progress: bool = False
) -> dict:
    """What each document costs a saved model: {"text", "nats": [...], "bytes": [...], "unknown_tokens", ...}.

    Kept or computed; nats are rounded to 4 decimals, which moves no comparison of a hundred bytes by 1e-5.
    """
    return _document_record(name, given_text(label, documents), save, progress)


def _document_record(name: str | Path, text: Text, save: bool, progress: bool) -> dict:
    def compute() -> dict:
        texts, tok = [strip_newlines(document) for document in text.read()], load_model(name)[1]
        found = predictions_of(name, text.read(), progress=progress)
        ids = tok.encode_batch(texts, bos=False)
        return {
            "text": text.name,
            "documents": len(texts),
            "unknown_tokens": sum(document.count(tok.unk_id) for document in ids),
            "bytes": [len(document.encode()) for document in texts],
            "nats": [round(nats, 4) for nats in found.per_document(found.nats, len(texts)).tolist()],
        }

    key = {"protocol": PROTOCOL, "fingerprint": text.fingerprint, "weights": weights_of(name)}
    return kept(name, "documents", key, compute, save=save)


def _marks(runs: list[Run], first: Run, records: list[dict]) -> list[str]:
    """What sets a model apart from the first one beside its score."""
    marks = []
    if runs[0].tokenizer_fingerprint != first.tokenizer_fingerprint:
        marks.append(f"other tokenizer ({runs[0].tokenizer or 'not recorded'})")
    if runs[0].text_fingerprint != first.text_fingerprint:
        marks.append(f"trained on other text ({runs[0].text or 'not recorded'})")
    tokens, others = (_tokens_seen(run) for run in (runs[0], first))
    if tokens and others and abs(tokens - others) > 0.01 * others:
        marks.append(f"saw {tokens / 1e6:.1f} M tokens in training, not {others / 1e6:.1f} M")
    unknown = max(record["unknown_tokens"] for record in records)
    if unknown:
        marks.append(f"flattered: its tokenizer cannot spell {unknown:,} tokens of this text")
    for what in _unlike(runs):
        marks.append(f"its runs differ in more than the seed: {what}")
    return marks


def _unlike(runs: list[Run]) -> list[str]:
    """What the runs of one family should share and do not, as far as their folders tell."""
    facts = {
        "architecture": [_architecture(run) for run in runs],
        "tokenizer": [run.tokenizer_fingerprint for run in runs],
        "training text": [run.text_fingerprint for run in runs],
        "tokens seen": [_tokens_seen(run) for run in runs],
    }
    return [what for what, found in facts.items() if len({fact for fact in found if fact is not None}) > 1]


def _architecture(run: Run) -> str | None:
    path = run.folder / "model_config.json"
    return json.dumps(read_json(path).get("model"), sort_keys=True) if path.is_file() else None


def _tokens_seen(run: Run) -> int | None:
    path = run.folder / "run.json"
    return read_json(path).get("tokens_seen") if path.is_file() else None


# ---------------------------------------------------------------- in words, and as a ranking


def sentence(a: str, b: str, found: dict, level: float = 0.95) -> str:
    """A difference in words: who is better and by how much, or that there is no difference beyond noise."""
    difference, (runs_a, runs_b) = found["difference"], found["seeds"]
    runs = f"{runs_a} seeds each" if runs_a == runs_b else f"{runs_a} and {runs_b} seeds"
    if found["method"] == "t" and 1 in (runs_a, runs_b):
        runs += ", the single run taken to vary like the others"
    if found["method"] == "documents":
        runs = "one run each, so noise of documents only"
    figure = f"{abs(difference):.4f} ± {found['half_width']:.4f} bits per byte ({100 * level:g} %, {runs})"
    if not found["told_apart"]:
        return f"no difference beyond noise between {a} and {b}: {figure}"
    better, worse = (a, b) if difference < 0 else (b, a)
    return f"{better} is better than {worse} by {figure}"


def rank_models(models: dict[str, dict], pairs: list[dict]) -> None:
    """Adds to each model the ranks that noise leaves open and the letters of its groups."""
    better: Counter = Counter()
    worse: Counter = Counter()
    apart = set()
    for pair in (p for p in pairs if p["told_apart"]):
        winner, loser = (pair["a"], pair["b"]) if pair["difference"] < 0 else (pair["b"], pair["a"])
        worse[loser] += 1  # so many are better than it
        better[winner] += 1
        apart |= {(winner, loser), (loser, winner)}
    groups = _groups(list(models), apart)
    for name, model in models.items():
        model["rank"] = [1 + worse[name], len(models) - better[name]]
        model["group"] = "".join(letter for letter, group in groups.items() if name in group)


def _groups(order: list[str], apart: set[tuple[str, str]]) -> dict[str, set[str]]:
    """All largest sets of models of which no two are told apart, by letter, the set of the best model first.

    Source: compact letter display, Piepho 2004; the sets by Bron & Kerbosch 1973.
    """
    near = {a: {b for b in order if b != a and (a, b) not in apart} for a in order}
    found: list[set[str]] = []

    def extend(group: set[str], candidates: set[str], done: set[str]) -> None:
        if not candidates and not done:
            found.append(group)
        for name in sorted(candidates):
            extend(group | {name}, candidates & near[name], done & near[name])
            candidates, done = candidates - {name}, done | {name}

    extend(set(), set(order), set())
    found.sort(key=lambda group: sorted(order.index(name) for name in group))
    return {_letter(i): group for i, group in enumerate(found)}


def _letter(i: int) -> str:
    return chr(ord("a") + i % 26) * (1 + i // 26)


def ranking(result: dict) -> DataFrame:
    """The models of a comparison as a table, best first.

    `rank` is a range where noise leaves several open. Models that share a letter of `group` cannot be told apart. `±`
    is the interval of the difference from the model in the first row.
    """
    import pandas as pd

    first = next(iter(result["models"]))
    widths = {pair["b"]: pair["half_width"] for pair in result["pairs"] if pair["a"] == first}
    differences = {pair["b"]: -pair["difference"] for pair in result["pairs"] if pair["a"] == first}
    rows = {}
    for name, model in result["models"].items():
        best, worst = model["rank"]
        rows[name] = {
            "rank": f"{best}" if best == worst else f"{best}–{worst}",
            "group": model["group"],
            "bits per byte": model["bits_per_byte"],
            "behind the first": differences.get(name, math.nan),
            "±": widths.get(name, math.nan),
            "seeds": len(model["runs"]),
            "tokenizer": model["tokenizer"] or "",
            "marks": "; ".join(model["marks"]),
        }
    return pd.DataFrame(rows).T.infer_objects()


def notes(result: dict) -> list[str]:
    """What must be said beside a ranking: the text, the chance of a false difference, models that are marked."""
    pairs, chance = len(result["pairs"]), 1 - result["level"]
    lines = [f"{result['text']}: {result['documents']:,} documents, {result['bytes']:,} bytes."]
    if pairs > 1:
        lines.append(
            f"{pairs} pairs, each at {100 * result['level']:g} %: if all models were equally good, about "
            f"{pairs * chance:.1f} of them would look different."
        )
    alone = [name for name, model in result["models"].items() if len(model["runs"]) == 1]
    if alone:
        lines.append(f"One run only, so that its seed's luck is not known: {', '.join(alone)}.")
    marked: dict[str, list[str]] = {}
    for name, model in result["models"].items():
        marked.setdefault("; ".join(model["marks"]), []).append(name)
    return lines + [f"{', '.join(names)}: {marks}." for marks, names in marked.items() if marks]
