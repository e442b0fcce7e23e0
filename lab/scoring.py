"""From text to what a model thought at each of its tokens: the protocol that every figure of lab/ is measured by.

    ids = encode_documents(tok, documents)             # BOS first, outer newlines stripped
    scores = score_ids(model, ids, batch_size=16)      # loss and rank of each text token
    found = predict(model, tok, documents)             # the same, with the confidence and the entropy of each guess

lab/evaluation.py says in words what is scored and what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# Logits held at a time; a whole batch of them would be (B, T, V). On a CPU few enough to stay in its cache.
LOGITS_AT_ONCE = {"cpu": 2**19, "other": 2**24}

# ---------------------------------------------------------------- text to windows


def strip_newlines(text: str) -> str:
    """A document as it is scored: without the newlines around it."""
    return text.strip("\r\n")


def encode_documents(tok, documents: Iterable[str]) -> list[list[int]]:
    """Each document's ids, BOS first. Raises: ValueError if no document holds a token, TypeError for what is no str."""
    if isinstance(documents, str):
        raise TypeError("documents='...' is a single str; give a list of documents: [text]")
    documents = list(documents)
    for number, text in enumerate(documents):
        if not isinstance(text, str):
            raise TypeError(f"documents[{number}] is a {type(text).__name__}; each document must be a str")
    ids = tok.encode_batch([strip_newlines(text) for text in documents], bos=True, eos=False)
    if not any(len(document) > 1 for document in ids):
        raise ValueError(f"documents: none of the {len(ids)} given holds any text, so there is nothing to score")
    return ids


@dataclass(frozen=True)
class Window:
    """A piece of a document that fits the context: n inputs, n targets one token later."""

    tokens: list[int]  # n + 1 ids: the inputs are all but the last, the targets all but the first
    place: int  # where its first target stands among the text tokens of all documents

    def __len__(self) -> int:
        return len(self.tokens) - 1


def cut_windows(ids: list[list[int]], context: int) -> Iterator[Window]:
    """Every document cut into windows of at most `context` targets, each text token the target of exactly one."""
    place = 0
    for document in ids:
        for start in range(0, len(document) - 1, context):
            window = Window(document[start : start + context + 1], place)
            yield window
            place += len(window)


# ---------------------------------------------------------------- windows to scores


@dataclass(frozen=True)
class Scores:
    """What is known about each text token, all documents one after another; every tensor (number of tokens,)."""

    losses: Tensor  # float32, nats
    above: Tensor  # int32, how many tokens of the vocabulary the model holds to be likelier
    level: Tensor  # int32, how many it holds to be equally likely, itself included

    def accuracy(self, k: int) -> float:
        """Share of tokens among the k likeliest, each order of equals being equally likely."""
        places_left = (k - self.above).double()
        return (places_left / self.level).clamp(0, 1).mean().item()


def score_ids(model: nn.Module, ids: list[list[int]], *, batch_size: int, progress: bool = False) -> Scores:
    """Loss and rank of each token after the first of each row of ids. Dropout is off, the model's mode restored.

    batch_size: in windows; it changes time and memory and no figure. Raises: ValueError if it is below 1.
    """
    losses, above, level = score_columns(model, ids, compare_logits, 3, batch_size, progress)
    return Scores(losses, above.int(), level.int())


def score_losses(model: nn.Module, ids: list[list[int]], *, batch_size: int, progress: bool = False) -> Tensor:
    """`score_ids(...).losses` alone, which takes less time."""
    return score_columns(model, ids, lambda logits, targets: (logit_losses(logits, targets),), 1, batch_size, progress)[
        0
    ]


def logit_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss in nats: (N, V), (N,) -> (N,) float32."""
    logits = logits.float()
    return logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]


def compare_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss in nats, number of logits above the target's and level with it: (N, V), (N,) -> three (N,)."""
    logits = logits.float()
    own = logits.gather(-1, targets[:, None])  # (N, 1)
    # Counted from below, so that a logit that is not a number (to which all comparisons are false) ranks last.
    at_most, below = (logits <= own).sum(-1, dtype=torch.int32), (logits < own).sum(-1, dtype=torch.int32)
    return logit_losses(logits, targets), logits.shape[-1] - at_most, (at_most - below).clamp(min=1)


def score_columns(
    model: nn.Module, ids: list[list[int]], columns: Callable, count: int, batch_size: int, progress: bool
) -> Tensor:
    """The `count` figures that `columns` (as `compare_logits`) finds for each text token: (count, tokens) float32.

    Windows of like length go together, so that little padding is computed.
    """
    from inference import eval_mode

    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    windows = sorted(cut_windows(ids, model.cfg.max_seq_len), key=len, reverse=True)
    num_tokens = sum(map(len, windows))
    found = torch.empty(count, num_tokens)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with eval_mode(model), torch.no_grad(), _bar(num_tokens, progress) as bar:
        for i in range(0, len(windows), batch_size):
            batch = windows[i : i + batch_size]
            places = torch.cat([torch.arange(w.place, w.place + len(w)) for w in batch])
            found[:, places] = _score_batch(model, batch, columns, device).cpu()
            bar.update(len(places))
    return found


def _score_batch(model: nn.Module, batch: list[Window], columns: Callable, device: torch.device) -> Tensor:
    """The columns of each target of a batch whose first window is the longest, padding left out: (columns, N).

    Padding (id 0, any would do) stands on the right, where a causal model cannot look at it from any real token.
    """
    width = len(batch[0])
    padded = torch.tensor([w.tokens + [0] * (width - len(w)) for w in batch], device=device)  # (B, T+1)
    lengths = torch.tensor([len(w) for w in batch], device=device)
    real = torch.arange(width, device=device) < lengths[:, None]  # (B, T)
    features = model.features(padded[:, :-1])[real]  # (N, D)
    targets = padded[:, 1:][real]  # (N,)
    rows = max(1, LOGITS_AT_ONCE["cpu" if device.type == "cpu" else "other"] // model.cfg.vocab_size)
    pieces = [columns(model.head(f), t) for f, t in zip(features.split(rows), targets.split(rows))]
    return torch.cat([torch.stack([column.float() for column in piece]) for piece in pieces], dim=1)


def _bar(num_tokens: int, progress: bool):
    from tqdm import tqdm

    return tqdm(total=num_tokens, unit=" tokens", unit_scale=True, desc="evaluating", disable=not progress, leave=False)


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

    def per_document(self, values: np.ndarray, count: int) -> np.ndarray:
        """Sums of the tokens' values by document: (tokens,) -> (count,)."""
        return np.bincount(self.document, values, count)


def predict(
    model: nn.Module, tok, documents: Iterable[str], *, batch_size: int = 16, progress: bool = False
) -> Predictions:
    """Runs the model over the documents; `batch_size` changes no figure. Raises as `encode_documents`."""
    ids = encode_documents(tok, documents)
    columns = score_columns(model, ids, _thoughts, 5, batch_size, progress).double().numpy()
    owner = np.repeat(np.arange(len(ids)), [len(document) - 1 for document in ids])
    return Predictions(*columns, owner)


def _thoughts(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Logits (N, V) and targets (N,) to loss, rank, equals, confidence and entropy: five (N,)."""
    log_p = logits.float().log_softmax(-1)
    p = log_p.exp()
    entropy = -torch.where(p > 0, p * log_p, 0).sum(-1)
    return *compare_logits(logits, targets), p.amax(-1), entropy


def predictions_of(name: str | Path, documents: Sequence[str], *, progress: bool = False) -> Predictions:
    """`predict` for a saved model. The last answer is kept in memory, for all that is measured from the same pass.

    Raises: ValueError, naming the model, if what it predicts is not finite: nothing could be compared with that.
    """
    from lab.kept import weights_of
    from lab.saving import load_model, model_folder

    asked = (model_folder(name).resolve(), weights_of(name), list(documents))
    if last_predictions.get("asked") != asked:
        model, tok, _ = load_model(name)
        found = predict(model, tok, documents, progress=progress)
        if wrong := np.count_nonzero(~np.isfinite(found.nats)):
            raise ValueError(
                f"{model_folder(name).name}: its loss is not finite at {wrong:,} of {len(found.nats):,} tokens: its "
                "training diverged, or its weights are damaged; leave it out"
            )
        last_predictions.update(asked=asked, answer=found)
    return last_predictions["answer"]


last_predictions: dict = {}  # what `predictions_of` was asked last, and its answer
