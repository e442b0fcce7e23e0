"""How sure a model is of its guesses and how often it is right; beside n-gram models of the same training text.

    calibration(model, tok, documents)          # top-k accuracy, entropy, calibration error, reliability bins
    results = calibrate(["a", "b"], text="stories.txt")   # saved models, and n-gram baselines under the same names

A model is calibrated if of all guesses that it gives a probability of 70 %, 70 % are right. All figures are teacher-
forced (each token is guessed from the true tokens before it) and per token, so they compare under one tokenizer only.
Intervals come from documents drawn anew (see lab/compare_models.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from lab import evaluation, ngram
from lab.breakdown import training_source
from lab.compare_models import choose_documents, draw_documents, find_runs, kept, symmetric_width, weights_of, widen
from lab.evaluation import LOGITS_AT_ONCE, TOP, documents_fingerprint
from lab.plots import Run
from lab.saving import load_model

PROTOCOL = 1  # rises whenever the same model and text would get another figure
BINS = 15  # as in Guo et al. 2017
ROWS_AT_ONCE = 512  # n-gram distributions held at a time


# ---------------------------------------------------------------- what a model thought at each token


@dataclass(frozen=True)
class Predictions:
    """What a model predicted at each text token, all documents one after another; arrays (tokens,)."""

    nats: np.ndarray  # what the true token cost
    above: np.ndarray  # how many tokens the model held to be likelier than the true one
    level: np.ndarray  # how many it held to be equally likely, the true one included
    confidence: np.ndarray  # probability of its best guess
    entropy: np.ndarray  # of its whole distribution, in nats
    document: np.ndarray  # number of the document

    def hits(self, k: int) -> np.ndarray:
        """Whether the true token is among the k likeliest; among equals, the share of their orders in which it is."""
        return np.clip((k - self.above) / self.level, 0, 1)


def predict(model: nn.Module, tok, documents: Iterable[str], *, batch_size: int = 16) -> Predictions:
    """Runs the model over the documents by the protocol of lab/evaluation.py; `batch_size` changes no figure."""
    from inference import eval_mode

    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    ids = evaluation._encode(tok, documents)
    windows = sorted(evaluation._windows(ids, model.cfg.max_seq_len), key=len, reverse=True)
    columns = np.empty((5, sum(map(len, windows))))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with eval_mode(model), torch.no_grad():
        for i in range(0, len(windows), batch_size):
            batch = windows[i : i + batch_size]
            places = np.concatenate([np.arange(w.place, w.place + len(w)) for w in batch])
            columns[:, places] = _predict_batch(model, batch, device)
    owner = np.repeat(np.arange(len(ids)), [len(document) - 1 for document in ids])
    return Predictions(*columns, owner)


def _predict_batch(model: nn.Module, batch: list[evaluation.Window], device: torch.device) -> np.ndarray:
    """The five columns of `Predictions` for the real tokens of a batch of windows, the longest first: (5, N)."""
    width = len(batch[0])
    padded = torch.tensor([w.tokens + [0] * (width - len(w)) for w in batch], device=device)  # (B, T+1)
    lengths = torch.tensor([len(w) for w in batch], device=device)
    real = torch.arange(width, device=device) < lengths[:, None]  # (B, T)
    features, targets = model.features(padded[:, :-1])[real], padded[:, 1:][real]  # (N, D), (N,)
    rows = max(1, LOGITS_AT_ONCE["cpu" if device.type == "cpu" else "other"] // model.cfg.vocab_size)
    pieces = [_columns(model.head(f).float(), t) for f, t in zip(features.split(rows), targets.split(rows))]
    return torch.cat(pieces, dim=1).cpu().numpy()


def _columns(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (N, V) and targets (N,) to loss, rank, equals, confidence and entropy: (5, N) float64."""
    losses, above, level = evaluation._compare(logits, targets)
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    entropy = -torch.where(p > 0, p * log_p, 0).sum(-1)
    return torch.stack([column.double() for column in (losses, above, level, p.amax(-1), entropy)])


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
        bits_per_byte         as in lab/evaluation.py
        calibration_error     sum over bins of share * |accuracy - confidence|, of the best guesses. Source: Guo et al.
                              2017, arXiv 1706.04599, eq. 3. Never below 0, so that noise alone makes it a little larger
    bins: the reliability diagram: for each of `bins` equal ranges of confidence that holds a token its `share` of
    tokens, mean `confidence`, `accuracy` and `half_width`.
    Raises: ValueError if there is no text, or fewer than two documents.
    """
    documents = list(documents)
    if len(documents) < 2 or bins < 1:
        raise ValueError(f"documents={len(documents)}, bins={bins}: at least 2 documents and 1 bin are needed")
    found = predict(model, tok, documents, batch_size=batch_size)
    drawn = draw_documents(len(documents), resamples, seed)
    tokens = np.bincount(found.document, minlength=len(documents)).astype(float)
    num_bytes = np.array([len(evaluation._strip(document).encode()) for document in documents], dtype=float)

    def score(values: np.ndarray, sizes: np.ndarray = tokens) -> dict:
        return _ratio(np.bincount(found.document, values, len(documents)), sizes, drawn, level)

    error, rows = _reliability(found, len(documents), bins, drawn, level)
    return {
        "protocol": PROTOCOL, "fingerprint": documents_fingerprint(documents), "level": level,
        "tokens": len(found.nats),
        **{f"top{k}": score(found.hits(k)) for k in TOP},
        "nats_per_token": score(found.nats), "entropy": score(found.entropy),
        "bits_per_byte": score(found.nats / math.log(2), num_bytes),
        "calibration_error": error, "bins": rows,
    }  # fmt: skip


def _ratio(sums: np.ndarray, sizes: np.ndarray, drawn: np.ndarray, level: float) -> dict:
    """Total over total, with its interval over documents: sums and sizes (documents,)."""
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
        accuracy = _ratio(right[:, i], tokens[:, i], drawn, level)
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
        own = ngram._pack(contexts[:, fitted.order - n :], V)  # the last n - 1 tokens
        at, known = ngram._find(level.contexts, own)
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
    texts = [evaluation._strip(text) for text in _first_bytes(documents, max_bytes)]
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

    A baseline is fitted on the training text of the first model of its tokenizer: "5-gram (bpe_2048)". Results hold
    `text`, `tokenizer` and `baseline` beside the scores.  orders: of the baselines; () for none.
    save: keep the results in the models' evaluation.json; what is kept there is not computed again.
    options: for `calibration`.
    """
    label, texts = choose_documents(names[0], text, documents)
    runs = [run for members in find_runs(names, with_seeds).values() for run in members]
    key = {"protocol": PROTOCOL, "fingerprint": documents_fingerprint(texts), "options": options}
    results, first = {}, {}
    for run in runs:
        first.setdefault(run.tokenizer_fingerprint or run.name, run)
        facts = {"text": label, "tokenizer": run.tokenizer, "baseline": False}
        own = key | {"weights": weights_of(run.folder)}
        results[run.name] = kept(run.folder, "calibration", own, _scores_of(run, facts, texts, options), save=save)
    for run in first.values():
        for order in orders:
            facts = {"text": label, "tokenizer": run.tokenizer, "baseline": True}
            own = key | {"order": order, "trained_on": run.text_fingerprint}
            compute = _scores_of(run, facts, texts, options, order)
            name = f"{_name_of(order)} ({run.tokenizer})"
            results[name] = kept(run.folder, "baselines", own, compute, save=save)
    return results


def _scores_of(run: Run, facts: dict, texts: list[str], options: dict, order: int | None = None):
    """A function that scores a saved model, or the n-gram model of that order under its tokenizer and training text."""

    def compute() -> dict:
        model, tok, _ = load_model(run.folder)
        if order is not None:
            (model,) = fit_baselines(tok, training_source(run.folder).documents("train"), [order]).values()
        return facts | calibration(model, tok, texts, **options)

    return compute


def table(results: dict[str, dict]):
    """The results of `calibrate` as a DataFrame: a row for each model, shares as fractions."""
    import pandas as pd

    columns = {"bits_per_byte": "bits per byte", "nats_per_token": "nats/token", "entropy": "entropy"} | {
        f"top{k}": f"top-{k}" for k in TOP
    }
    rows = {
        name: {"tokenizer": result["tokenizer"]}
        | {column: result[key]["value"] for key, column in columns.items()}
        | {"calibration error": result["calibration_error"]["value"], "±": result["calibration_error"]["half_width"]}
        for name, result in results.items()
    }
    return pd.DataFrame(rows).T.infer_objects()
