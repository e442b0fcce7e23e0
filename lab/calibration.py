"""How sure a model is of its guesses and how often it is right; beside n-gram models of the same training text.

    calibration(model, tok, documents)          # top-k accuracy, entropy, calibration error, reliability bins
    results = calibrate(["a", "b"], text="stories.txt")   # saved models, and n-gram baselines under the same names

A model is calibrated if of all guesses that it gives a probability of 70 %, 70 % are right. All figures are teacher-
forced (each token is guessed from the true tokens before it) and per token, so they compare under one tokenizer only.
Intervals come from documents drawn anew (see lab/compare_models.py).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from lab import ngram
from lab.compare_models import runs_of
from lab.evaluation import TOP
from lab.intervals import draw_documents, symmetric_width, widen
from lab.kept import (
    Text,
    choose_text,
    documents_fingerprint,
    find_records,
    keep,
    kept,
    training_documents,
    weights_of,
)  # fmt: skip
from lab.plots import Run
from lab.saving import load_model
from lab.scoring import Predictions, predict, predictions_of, strip_newlines

PROTOCOL = 1  # rises whenever the same model and text would get another figure
BINS = 15  # as in Guo et al. 2017
ROWS_AT_ONCE = 512  # n-gram distributions held at a time
TABLE = {  # key -> (heading, how a figure is written)
    "bits_per_byte": ("bits per byte", "{:.4f}"),
    **{f"top{k}": (f"top-{k}", "{:.1%}") for k in TOP},
    "nats_per_token": ("nats/token", "{:.3f}"),
    "entropy": ("entropy", "{:.3f}"),
    "beyond_expected": ("nats - entropy", "{:+.3f}"),
    "calibration_error": ("calibration error", "{:.3f}"),
}


# ---------------------------------------------------------------- scores


def calibration(
    model: nn.Module,
    tok,
    documents: Sequence[str],
    *,
    bins: int = BINS,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    batch_size: int = 16,
) -> dict:
    """Accuracy, entropy and calibration of a model on a text; returns a dict that JSON can hold.

    Each of these is {"value", "half_width"}, with the interval over documents:
        top1 ... top10        share of tokens that are among the k likeliest
        nats_per_token        what the true tokens cost
        entropy               what the model expected them to cost, nats per token: equal where it is calibrated
        beyond_expected       nats_per_token - entropy: above 0 for a model that is too sure of itself
        bits_per_byte         as in lab/evaluation.py
        calibration_error     sum over bins of share * |accuracy - confidence|, of the best guesses. Source: Guo et al.
                              2017, arXiv 1706.04599, eq. 3. Never below 0, so that noise alone makes it a little larger
    bins: the reliability diagram: for each of `bins` equal ranges of confidence that holds a token its `share` of
    tokens, mean `confidence`, `accuracy` and `half_width`.
    Raises: ValueError if there is no text, or fewer than two documents.
    """
    documents = list(documents)
    found = predict(model, tok, documents, batch_size=batch_size)
    return calibration_of(found, documents, bins=bins, level=level, resamples=resamples, seed=seed)


def calibration_of(
    found: Predictions,
    documents: Sequence[str],
    *,
    bins: int = BINS,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """`calibration` from what a model thought at each token of the documents."""
    if len(documents) < 2 or bins < 1:
        raise ValueError(f"documents={len(documents)}, bins={bins}: at least 2 documents and 1 bin are needed")
    drawn = draw_documents(len(documents), resamples, seed)
    tokens = found.per_document(np.ones(len(found.nats)), len(documents))
    num_bytes = np.array([len(strip_newlines(document).encode()) for document in documents], dtype=float)

    def score(values: np.ndarray, sizes: np.ndarray = tokens) -> dict:
        return ratio(found.per_document(values, len(documents)), sizes, drawn, level)

    error, rows = _reliability(found, len(documents), bins, drawn, level)
    return {
        "protocol": PROTOCOL, "fingerprint": documents_fingerprint(documents), "level": level,
        "tokens": len(found.nats),
        **{f"top{k}": score(found.hits(k)) for k in TOP},
        "nats_per_token": score(found.nats), "entropy": score(found.entropy),
        "beyond_expected": score(found.nats - found.entropy),
        "bits_per_byte": score(found.nats / math.log(2), num_bytes),
        "calibration_error": error, "bins": rows,
    }  # fmt: skip


def ratio(sums: np.ndarray, sizes: np.ndarray, drawn: np.ndarray, level: float) -> dict:
    """Total over total, {"value", "half_width"}, with its interval over documents: sums and sizes (documents,).

    drawn: from `draw_documents`; a resample in which all sizes are 0 says nothing and is left out.
    """
    value = sums.sum() / sizes.sum()
    with np.errstate(invalid="ignore"):
        deviations = (drawn @ sums) / (drawn @ sizes) - value
    return {"value": float(value), "half_width": float(symmetric_width(deviations, level) * widen(len(sums)))}


def _reliability(found: Predictions, count: int, bins: int, drawn: np.ndarray, level: float) -> tuple[dict, list[dict]]:
    """The calibration error, and the bins that hold a token."""
    which = np.minimum((found.confidence * bins).astype(int), bins - 1)
    cell = found.document * bins + which

    def sums(values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(cell, values, count * bins).reshape(count, bins).astype(float)  # (documents, bins)

    tokens, right, confidence = sums(), sums(found.hits(1)), sums(found.confidence)
    gaps = right - confidence
    value = np.abs(gaps.sum(0)).sum() / tokens.sum()
    deviations = np.abs(drawn @ gaps).sum(1) / (drawn @ tokens).sum(1) - value
    error = {"value": float(value), "half_width": float(symmetric_width(deviations, level) * widen(count))}
    rows = []
    for i in np.flatnonzero(tokens.sum(0)):
        n = tokens[:, i].sum()
        accuracy = ratio(right[:, i], tokens[:, i], drawn, level)
        rows.append({
            "low": i / bins, "high": (i + 1) / bins, "share": float(n / tokens.sum()),
            "confidence": float(confidence[:, i].sum() / n), "accuracy": accuracy["value"],
            "half_width": accuracy["half_width"],
        })  # fmt: skip
    return error, rows


# ---------------------------------------------------------------- n-gram models in the place of a network


class NGramModel(nn.Module):
    """An n-gram model with the interface that scoring needs: `evaluate(NGramModel(fitted), tok, documents)`.

    `features` are the order - 1 tokens before each position, `head` turns them into logits, which here are logarithms
    of probabilities. Each row must begin with BOS; its context has no end, so that no document is cut.
    """

    def __init__(self, fitted: ngram.NGram):
        super().__init__()
        self.fitted = fitted
        self.cfg = SimpleNamespace(vocab_size=fitted.vocab_size, max_seq_len=2**31)

    def features(self, tokens: Tensor, ctx=None) -> Tensor:
        """(B, T) int64 -> (B, T, order - 1) int64, BOS repeated before the start"""
        width = self.fitted.order - 1
        padded = torch.cat([tokens[:, :1].expand(-1, max(width - 1, 0)), tokens], dim=1)
        return padded.unfold(1, width, 1) if width else tokens.new_empty(*tokens.shape, 0)

    def head(self, contexts: Tensor) -> Tensor:
        """(N, order - 1) int64 -> logits (N, V) float32"""
        pieces = [distributions(self.fitted, rows.numpy()) for rows in contexts.cpu().split(ROWS_AT_ONCE)]
        return torch.from_numpy(np.concatenate(pieces)).log().float()


def distributions(fitted: ngram.NGram, contexts: np.ndarray) -> np.ndarray:
    """Probability of every token after each context: (N, order - 1) ids -> (N, V), rows sum to 1.

    The same as `NGram.probabilities` for all V continuations, but each order touches only those that it has seen.
    """
    V = fitted.vocab_size
    p = np.full((len(contexts), V), 1 / V)
    for n, level in enumerate(fitted.levels, start=1):
        own = ngram.pack(contexts[:, fitted.order - n :], V)  # the last n - 1 tokens
        at, known = ngram.find(level.contexts, own)
        discounts = np.minimum(level.discounts * fitted.scale, [1.0, 2.0, 3.0])
        p *= np.where(known, level.kinds[at] @ discounts / level.totals[at], 1.0)[:, None]
        first, last = (np.searchsorted(level.keys, (own + i) * V) for i in (0, 1))  # a context's keys stand together
        lengths = np.where(known, last - first, 0)
        rows = np.repeat(np.arange(len(contexts)), lengths)
        keys = np.arange(lengths.sum()) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
        counts = level.counts[keys]
        kept = counts - discounts[np.minimum(counts, 3) - 1]
        p[rows, level.keys[keys] % V] += kept / level.totals[at[rows]]
    return p


def fit_baselines(
    tok, documents: Iterable[str], orders: Sequence[int] = (1, 2, 5), *, max_bytes: int = 50_000_000
) -> dict[str, NGramModel]:
    """N-gram models of a training text under one tokenizer: {"unigram": ..., "bigram": ..., "5-gram": ...}.

    max_bytes: of text to count at most; the documents after that are left out.
    Raises: ValueError for an order that does not fit the vocabulary (see `ngram.fit`), or no text.
    """
    texts = [strip_newlines(text) for text in _first_bytes(documents, max_bytes)]
    if not texts:
        raise ValueError("documents: there is none to count n-grams in")
    ids = tok.encode_batch(texts, bos=True, eos=True)
    return {_name_of(n): NGramModel(ngram.fit(ids, n, tok.vocab_size)) for n in orders}


def _name_of(order: int) -> str:
    return {1: "unigram", 2: "bigram", 3: "trigram"}.get(order, f"{order}-gram")


def _first_bytes(documents: Iterable[str], limit: int) -> Iterator[str]:
    """Documents until they hold `limit` bytes, the last one whole."""
    for document in documents:
        if limit <= 0:
            return
        limit -= len(document.encode())
        yield document


# ---------------------------------------------------------------- saved models


def calibrate(
    names: Sequence[str | Path],
    text: str = "auto",
    *,
    documents: int = 100,
    orders: Sequence[int] = (1, 2, 5),
    with_seeds: bool = False,
    save: bool = False,
    **options,
) -> dict[str, dict]:
    """`calibration` of saved models and of n-gram baselines, all on the same documents, by name.

    text, documents: as in `compare`.  orders: of the baselines; () for none.
    A baseline is fitted on the training text of the models of one tokenizer: "5-gram (bpe_2048)". Where that text is
    not here and no baseline is kept, or the order does not fit the vocabulary, it is left out, and a warning says so.
    Beside the scores, results hold `text`, `tokenizer` and `baseline` (True or False).
    save: keep the results in the models' evaluation.json (a baseline in that of every model beside which it stands);
    what is kept there is not computed again.  options: for `calibration_of`.
    """
    runs = runs_of(names, with_seeds)
    key = {"protocol": PROTOCOL, "options": options}
    chosen = choose_text([run.folder for run in runs], text, documents, "calibration", key)
    key["fingerprint"] = chosen.fingerprint
    results = {}
    for run in runs:
        own = key | {"weights": weights_of(run.folder)}
        results[run.name] = kept(run.folder, "calibration", own, _scores_of(run, chosen, options), save=save)
    peers: dict[tuple, list[Run]] = {}
    for run in runs:
        peers.setdefault((run.tokenizer_fingerprint, run.text_fingerprint), []).append(run)
    for alike, label in zip(peers.values(), _labels(peers)):
        records = _baselines(alike, orders, chosen, key, options, save)
        results |= {f"{_name_of(order)} ({label})": record for order, record in records.items()}
    return results


def _scores_of(run: Run, text: Text, options: dict):
    """A function that scores a saved model."""

    def compute() -> dict:
        facts = {"text": text.name, "tokenizer": run.tokenizer, "baseline": False}
        return facts | calibration_of(predictions_of(run.folder, text.read()), text.read(), **options)

    return compute


def _labels(peers: dict[tuple, list[Run]]) -> list[str]:
    """For each (tokenizer, training text) what its baselines' names say in brackets, no two alike.

    The tokenizer, also the text where models of that tokenizer were trained on several; where names do not tell two
    apart, their fingerprints, too.
    """
    tokenizers = [tokenizer for tokenizer, _ in peers]
    several = [tokenizers.count(tokenizer) > 1 for tokenizer in tokenizers]
    labels = [f"{run.tokenizer}{f', {run.text}' if more else ''}" for (run, *_), more in zip(peers.values(), several)]
    prints = [", ".join((fingerprint or "not recorded")[:6] for fingerprint in pair) for pair in peers]
    return [f"{label}, {own}" if labels.count(label) > 1 else label for label, own in zip(labels, prints)]


def _baselines(
    runs: list[Run], orders: Sequence[int], text: Text, key: dict, options: dict, save: bool
) -> dict[int, dict]:
    """The n-gram models under the tokenizer and training text that these runs share, kept or computed, by order.

    Those for which `_new_baselines` gives none are left out.
    """
    keys = {order: key | {"order": order, "trained_on": runs[0].text_fingerprint} for order in orders}
    held = {n: {run.folder: find_records(run.folder, "baselines", own) for run in runs} for n, own in keys.items()}
    records = {n: next(filter(None, found.values()))[0] for n, found in held.items() if any(found.values())}
    for n, record in _new_baselines(runs[0], [n for n in keys if n not in records], text, options).items():
        records[n] = keys[n] | record
    for n in records if save else ():
        for folder in (folder for folder, own in held[n].items() if not own):
            keep(folder, "baselines", keys[n], records[n])
    return {n: records[n] for n in keys if n in records}


def _new_baselines(run: Run, orders: Sequence[int], text: Text, options: dict) -> dict[int, dict]:
    """Scores of n-gram models of a run's tokenizer and training text, which is read once, by order.

    Left out with a warning: an order that does not fit the vocabulary; all, if a text that they need is not here.
    """
    if not orders:
        return {}
    models, problems = {}, {}
    try:
        (_, training), texts = training_documents(run.folder), text.read()
        tok = load_model(run.folder)[1]
        problems = {n: problem for n in orders if (problem := ngram.misfit(n, tok.vocab_size))}
        if fitting := [n for n in orders if n not in problems]:
            models = dict(zip(fitting, fit_baselines(tok, training, fitting).values()))
    except (OSError, ValueError) as error:
        problems = dict.fromkeys(orders, error)
    for n, problem in problems.items():
        warnings.warn(f"the {_name_of(n)} baseline is left out: {problem}", stacklevel=4)
    facts = {"text": text.name, "tokenizer": run.tokenizer, "baseline": True}
    return {n: facts | calibration_of(predict(model, tok, texts), texts, **options) for n, model in models.items()}


def table(results: dict[str, dict]):
    """The results of `calibrate` as a DataFrame: a row for each model, each figure as text with its interval."""
    import pandas as pd

    rows = {name: {"tokenizer": result["tokenizer"]} for name, result in results.items()}
    for name, result in results.items():
        for key, (column, form) in TABLE.items():
            score = result[key]
            rows[name][column] = f"{form.format(score['value'])} ± {form.format(score['half_width']).lstrip('+')}"
    return pd.DataFrame(rows).T
