"""Which of several texts does a model hold to be likelier: total log-likelihoods, in nats.

    log_likelihoods(model, tok, ["The cat sleeps.", "The cat sleep."])     # tensor([-21.3, -27.9])

Each text stands behind BOS, all its tokens count, EOS is left out; one longer than the context is cut into windows: the
protocol of lab/evaluation.py, whose code does the scoring.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lab.scoring import score_losses

TOKENS_AT_ONCE = 2048  # in a batch, if its size is left open; many more are slower on a CPU, as they leave its cache
SAME = 1e-6  # relative difference up to which two totals are one: what float32 and the order of a batch can change


def log_likelihoods(
    model: nn.Module, tok, texts: Iterable[str], *, batch_size: int | None = None, progress: bool = False
) -> Tensor:
    """ln p(text | BOS) of each text under the model: (N,) float64, in nats, at most 0.

    batch_size: texts (more exactly windows) at a time; None: about TOKENS_AT_ONCE tokens. It changes time and memory,
    and the numbers by no more than float32's rounding (relative 1e-6).
    """
    ids = tok.encode_batch(texts, bos=True, eos=False)
    scores = token_log_likelihoods(model, ids, batch_size=batch_size, progress=progress)
    return torch.tensor([own.sum(dtype=torch.float64).item() for own in scores], dtype=torch.float64)


def token_log_likelihoods(
    model: nn.Module, ids: Sequence[Sequence[int]], *, batch_size: int | None = None, progress: bool = False
) -> list[Tensor]:
    """ln p of each token after the first (BOS): for each row of ids a float32 tensor (its length - 1,), in nats.

    Rows that are equal are scored once and get the very same numbers.
    Raises: ValueError if the model's logits are not numbers.
    """
    rows = list(dict.fromkeys(map(tuple, ids)))
    if batch_size is None:
        batch_size = max(1, TOKENS_AT_ONCE * len(rows) // max(1, sum(map(len, rows))))
    losses = score_losses(model, [list(row) for row in rows], batch_size=batch_size, progress=progress)
    if losses.isnan().any():
        raise ValueError("model: its logits are not numbers (NaN), so no text is likelier than another")
    scores = dict(zip(rows, losses.neg().split([len(row) - 1 for row in rows])))
    return [scores[tuple(row)] for row in ids]


def share_of_best(scores: Sequence[float], right: int) -> float:
    """1 if the right one has the highest score, 0 if another has, 1/m if it is one of m that have it alike."""
    best = max(scores)
    winners = [math.isclose(score, best, rel_tol=SAME) for score in scores]
    return winners[right] / sum(winners)
