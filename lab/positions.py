"""Loss by position in the context: what a token costs after 1, 2, 4, ... tokens were read.

    found = loss_by_position(["a", "b"], text="stories.txt")     # a dict for each run, with a row for each range
    plot_positions(found)                                        # lab/comparison_plots.py

A curve that falls says that the context helps; stories whose first words are nearly always the same ("Once upon a
time") make it rise after them. Compare models with each other rather than positions.

The position of a token is how many tokens the model has seen before it in its window, BOS counted: 1 for the first word
of a document, at most the context. Where a document is longer than the context, its later windows begin with one token
seen. Tokens of other tokenizers stand for other amounts of text, so only ranges under one tokenizer compare; bits per
byte of lab/breakdown.py's `position`, by bytes of the story, compare across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lab.breakdown import text_sizes
from lab.calibration import ratio
from lab.compare_models import runs_of
from lab.intervals import draw_documents
from lab.kept import choose_text, kept, weights_of
from lab.saving import load_model
from lab.scoring import predictions_of, strip_newlines

PROTOCOL = 1  # rises whenever the same model and text would get another figure


def loss_by_position(
    names: Sequence[str | Path],
    text: str = "auto",
    *,
    documents: int = 300,
    with_seeds: bool = True,
    save: bool = False,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """The loss of saved models by the position in the context, by the name of each run.

    text, documents, with_seeds, save: as in `compare`.
    Returns for each run {"text", "fingerprint", "documents", "tokenizer", "context", "level", "rows"}. A row holds
    `low` and `high` (positions from 1 on, both in it), `tokens`, and `nats_per_token` and `bits_per_byte`, each
    {"value", "half_width"} with the interval over documents.
    """
    runs = runs_of(names, with_seeds)
    key = {"protocol": PROTOCOL, "level": level, "resamples": resamples, "seed": seed}
    chosen = choose_text([run.folder for run in runs], text, documents, "positions", key)
    results = {}
    for run in runs:

        def compute(run=run) -> dict:
            texts, (_, tok, cfg) = chosen.read(), load_model(run.folder)
            drawn = draw_documents(len(texts), resamples, seed)
            nats = predictions_of(run.folder, texts).nats
            rows = position_rows(nats, tok, texts, cfg.max_seq_len, drawn, level)
            facts = {"text": chosen.name, "documents": len(texts), "tokenizer": run.tokenizer}
            return facts | {"context": cfg.max_seq_len, "rows": rows}

        own = key | {"fingerprint": chosen.fingerprint, "weights": weights_of(run.folder)}
        results[run.name] = kept(run.folder, "positions", own, compute, save=save)
    return results


def position_rows(
    nats: np.ndarray, tok, documents: Sequence[str], context: int, drawn: np.ndarray, level: float = 0.95
) -> list[dict]:
    """The rows of `loss_by_position` that hold a token: position 1, 2, 3 to 4, 5 to 8, ..., up to the context.

    nats: of each text token, all documents one after another.  drawn: from `draw_documents`.
    """
    ids = tok.encode_batch([strip_newlines(document) for document in documents], bos=False)
    lengths = [len(own) for own in ids]
    places = np.concatenate([np.arange(n) % context + 1 for n in lengths])
    owner, sizes = np.repeat(np.arange(len(lengths)), lengths), text_sizes(tok, documents)
    ranges = np.ceil(np.log2(places)).astype(int)
    rows = []
    for i in np.unique(ranges):
        inside = ranges == i
        sums, tokens, num_bytes = (
            np.bincount(owner, values * inside, len(lengths)) for values in (nats, np.ones(len(nats)), sizes)
        )
        rows.append({
            "low": int(2 ** (i - 1)) + 1 if i else 1, "high": int(min(2**i, context)), "tokens": int(tokens.sum()),
            "nats_per_token": ratio(sums, tokens, drawn, level),
            "bits_per_byte": ratio(sums / math.log(2), num_bytes, drawn, level),
        })  # fmt: skip
    return rows
