"""How well a model predicts a text: bits per byte, nats per token, perplexity and top-k accuracy.

    evaluate(model, tok, documents)            # {"bits_per_byte": 0.87, "nats_per_token": 2.16, ...}
    token_losses(model, tok, documents)        # one tensor per document, for paired comparisons
    results_of(["a", "b"])                     # of saved models: what their folders hold, computed where it is missing

    python -m lab.evaluation 0.5m_tall_and_skinny --text stories.txt --documents 500 --save

The protocol, which makes two figures comparable. A document's outer newlines are stripped and BOS is put before it;
each of its tokens is then predicted once from all tokens before it. A document longer than the context T is cut into
windows, inputs ids[s:s+T] and targets ids[s+1:s+T+1] for s = 0, T, 2T, ...: whatever stands in an earlier window is not
seen. Only tokens of the text are scored: BOS is given, and EOS, whose prediction spells no byte, is left out.
"""

import hashlib
import math
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from lab.files import read_json, shown, write_json
from lab.minimal_pairs import minimal_pairs  # noqa: F401 (offered from here, as is multiple_choice)
from lab.multiple_choice import multiple_choice  # noqa: F401
from lab.saving import list_models, load_model, model_folder

PROTOCOL = 1  # rises whenever the same model and text would get another figure
TOP = (1, 3, 5, 10)
# Logits held at a time; a whole batch of them would be (B, T, V). On a CPU few enough to stay in its cache.
LOGITS_AT_ONCE = {"cpu": 2**19, "other": 2**24}


def evaluate(
    model: nn.Module,
    tok,
    documents: Iterable[str],
    *,
    batch_size: int = 16,
    max_documents: int | None = None,
    progress: bool = False,
) -> dict:
    """Scores `model` on `documents` (the first `max_documents` of them), as the head of this file describes.

    Returns a dict:
        bits_per_byte    total negative log-likelihood / ln 2 / UTF-8 bytes: comparable between all tokenizers
        nats_per_token   the same total / number of tokens: comparable under one tokenizer only
        perplexity       exp(nats_per_token): likewise
        top1 ... top10   share of tokens that are among the model's k likeliest; among equal logits, each order of them
                         counts as equally likely, so that a model which knows nothing has k / V
        tokens, bytes, documents    how much text was scored
        unknown_tokens   how many of the tokens stand for text that the tokenizer cannot hold. Where this is not 0, the
                         bits per byte flatter the model: it did not have to spell that text
    `batch_size`, in windows, changes time and memory and no figure. Dropout is off; the model's mode is restored. The
    model computes in its own precision, or in that of the caller's autocast; sums are in double precision.
    Raises: ValueError if there is no text to score.
    """
    texts = list(islice(documents, max_documents)) if not isinstance(documents, str) else documents
    ids = _encode(tok, texts)
    scores = _score(model, ids, batch_size=batch_size, progress=progress)
    num_tokens = len(scores.losses)
    num_bytes = sum(len(_strip(text).encode()) for text in texts)
    total = scores.losses.sum(dtype=torch.float64).item()
    return {
        "nats_per_token": total / num_tokens,
        "bits_per_byte": total / math.log(2) / num_bytes,
        "perplexity": torch.tensor(total / num_tokens, dtype=torch.float64).exp().item(),  # inf where math.exp raises
        **{f"top{k}": scores.accuracy(k) for k in TOP},
        "tokens": num_tokens,
        "bytes": num_bytes,
        "documents": len(texts),
        "unknown_tokens": sum(document[1:].count(tok.unk_id) for document in ids),
    }


def token_losses(
    model: nn.Module, tok, documents: Iterable[str], *, batch_size: int = 16, progress: bool = False
) -> list[Tensor]:
    """Negative log-likelihoods in nats, token by token: for each document a float32 tensor (number of its tokens,)."""
    ids = _encode(tok, documents)
    scores = _score(model, ids, batch_size=batch_size, progress=progress)
    return list(scores.losses.split([len(document) - 1 for document in ids]))


# ---------------------------------------------------------------- text to windows


def _strip(text: str) -> str:
    return text.strip("\r\n")


def _encode(tok, documents: Iterable[str]) -> list[list[int]]:
    """Each document's ids, BOS first. Raises ValueError if no document holds a token."""
    if isinstance(documents, str):
        raise TypeError("documents='...' is a single str; give a list of documents: [text]")
    ids = tok.encode_batch([_strip(text) for text in documents], bos=True, eos=False)
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


def _windows(ids: list[list[int]], context: int) -> Iterator[Window]:
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


def _score(model: nn.Module, ids: list[list[int]], *, batch_size: int, progress: bool) -> Scores:
    """Runs the model over all documents. Windows of like length go together, so that little padding is computed."""
    from inference import eval_mode

    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    windows = sorted(_windows(ids, model.cfg.max_seq_len), key=len, reverse=True)
    num_tokens = sum(map(len, windows))
    losses, above, level = torch.empty(num_tokens), *torch.empty(2, num_tokens, dtype=torch.int32)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with eval_mode(model), torch.no_grad(), _bar(num_tokens, progress) as bar:
        for i in range(0, len(windows), batch_size):
            batch = windows[i : i + batch_size]
            places = torch.cat([torch.arange(w.place, w.place + len(w)) for w in batch])
            results = _score_batch(model, batch, device)
            losses[places], above[places], level[places] = (column.cpu() for column in results)
            bar.update(len(places))
    return Scores(losses, above, level)


def _score_batch(model: nn.Module, batch: list[Window], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and rank of each target of a batch, padding left out: three tensors (N,).

    Padding (id 0, any would do) stands on the right, where a causal model cannot look at it from any real token.
    """
    width = len(batch[0])  # the first is the longest
    padded = torch.tensor([w.tokens + [0] * (width - len(w)) for w in batch], device=device)  # (B, T+1)
    lengths = torch.tensor([len(w) for w in batch], device=device)
    real = torch.arange(width, device=device) < lengths[:, None]  # (B, T)
    features = model.features(padded[:, :-1])[real]  # (N, D)
    targets = padded[:, 1:][real]  # (N,)
    rows = max(1, LOGITS_AT_ONCE["cpu" if device.type == "cpu" else "other"] // model.cfg.vocab_size)
    pieces = [_compare(model.head(f), t) for f, t in zip(features.split(rows), targets.split(rows))]
    return tuple(torch.cat(column) for column in zip(*pieces))


def _compare(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss in nats, number of logits above the target's and level with it: (N, V), (N,) -> three (N,)."""
    logits = logits.float()
    own = logits.gather(-1, targets[:, None])  # (N, 1)
    losses = logits.logsumexp(-1) - own[:, 0]
    # Counted from below, so that a logit that is not a number (to which all comparisons are false) ranks last.
    at_most, below = (logits <= own).sum(-1, dtype=torch.int32), (logits < own).sum(-1, dtype=torch.int32)
    return losses, logits.shape[-1] - at_most, (at_most - below).clamp(min=1)


def _bar(num_tokens: int, progress: bool):
    from tqdm import tqdm

    return tqdm(total=num_tokens, unit=" tokens", unit_scale=True, desc="evaluating", disable=not progress, leave=False)


# ---------------------------------------------------------------- saved models and their evaluation.json


def evaluate_saved(
    name: str | Path, documents: Sequence[str], *, text: str, save: bool = False, device: str = "cpu", progress=False
) -> dict:
    """Scores a saved model: the result of `evaluate`, with what it was measured on and how long that took.

    text: the name that the documents go by.  save: keep the result in the model's evaluation.json, in place of an
    earlier one for the same documents.
    """
    weights = _fingerprint_of_weights(name)
    model, tok, _ = load_model(name, device=device)
    started = time.perf_counter()
    scores = evaluate(model, tok, documents, progress=progress)
    result = {
        "text": text,
        "fingerprint": documents_fingerprint(documents),
        **scores,
        "seconds": round(time.perf_counter() - started, 2),
        "weights": weights,
    }
    if save:
        kept = [r for r in read_results(name) if r["fingerprint"] != result["fingerprint"]]
        path = model_folder(name) / "evaluation.json"
        content = read_json(path) if path.is_file() else {}  # other modules keep what they measured there, too
        write_json(path, content | {"protocol": PROTOCOL, "results": [*kept, result]})
    return result


def read_results(name: str | Path) -> list[dict]:
    """The results in a model's evaluation.json, in the order in which they were saved; [] if there is no such file.

    What another protocol measured, or other weights than the folder now holds, is left out with a warning.
    """
    path = model_folder(name) / "evaluation.json"
    if not path.is_file():
        return []
    content = read_json(path)
    if content.get("protocol") != PROTOCOL:
        other = content.get("protocol")
        warnings.warn(f"{shown(path)} is left out: measured by protocol {other}, not {PROTOCOL}", stacklevel=2)
        return []
    weights = _fingerprint_of_weights(name)
    valid = [result for result in content["results"] if result["weights"] == weights]
    if len(valid) < len(content["results"]):
        warnings.warn(f"{shown(path)}: results for other weights than model.safetensors are left out", stacklevel=2)
    return valid


def results_of(
    names: Sequence[str | Path],
    text: str = "auto",
    *,
    max_documents: int = 500,
    save: bool = True,
    progress: bool = False,
) -> dict[str, dict]:
    """A result for each saved model, by its folder's name. What evaluation.json holds is not computed again.

    text: "auto" takes each model's first saved result; a model without one is scored on the validation text of its own
    training. Otherwise a path or a name as in `text_documents`, the same for all models.
    save: keep new results in evaluation.json, too.
    """
    chosen = None if text == "auto" else text_documents(text, max_documents)
    results = {}
    for name in names:
        saved = read_results(name)
        if chosen is None and saved:
            result = saved[0]
        else:
            label, documents = chosen or _own_validation(name, max_documents)
            fingerprint = documents_fingerprint(documents)
            result = next((r for r in saved if r["fingerprint"] == fingerprint), None)
            result = result or evaluate_saved(name, documents, text=label, save=save, progress=progress)
        results[model_folder(name).name] = result
    return results


def text_documents(text: str, max_documents: int) -> tuple[str, list[str]]:
    """Name and first documents of a text: of a file or folder from its start, of "storyworld" or "tinystories" those
    of the validation split."""
    from lab.data import open_source, validation_documents

    if max_documents < 1:
        raise ValueError(f"documents={max_documents} must be at least 1")
    source = open_source(text, valid_dataset=text)
    return source.name, validation_documents(source, max_documents)


def _own_validation(name: str | Path, max_documents: int) -> tuple[str, list[str]]:
    """Name and documents of the validation split that a saved model was trained beside."""
    from lab.data import open_source, validation_documents

    path = model_folder(name) / "train_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)} is missing, so the model's own text is not known: pass text=PATH")
    config = read_json(path)
    limit = {"limit_bytes": config["dataset_limit"]} if "dataset_limit" in config else {}
    source = open_source(config["dataset"], valid_dataset=config.get("valid_dataset", ""), **limit)
    return f"{source.name}, validation", validation_documents(source, max_documents)


def documents_fingerprint(documents: Iterable[str]) -> str:
    """16 hexadecimal digits that stand for these documents in this order."""
    from tokenizer import text_fingerprint

    return text_fingerprint(map(_strip, documents))[:16]


def _fingerprint_of_weights(name: str | Path) -> str | None:
    path = model_folder(name) / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


# ---------------------------------------------------------------- terminal


def markdown(rows: list[dict[str, str]]) -> str:
    """A table in Markdown, its columns aligned: the first to the left, the others to the right."""
    names = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in names}
    cells = [{name: name for name in names}, *rows]
    lines = ["| " + " | ".join(c[n].rjust(widths[n]) if n != names[0] else c[n].ljust(widths[n]) for n in names) + " |"
             for c in cells]  # fmt: skip
    rule = "|" + "|".join("-" * (widths[n] + 1) + (":" if n != names[0] else "-") for n in names) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _row(name: str, result: dict) -> dict[str, str]:
    from lab.plots import read_run

    return {
        "model": name,
        "bits/byte": f"{result['bits_per_byte']:.4f}",
        "nats/token": f"{result['nats_per_token']:.4f}",
        "perplexity": f"{result['perplexity']:.2f}",
        **{f"top-{k}": f"{result[f'top{k}']:.1%}" for k in TOP},
        "unknown": f"{result['unknown_tokens']:,}",
        "seconds": f"{result['seconds']:.1f}",
        "trained on": read_run(name).text or "not recorded",
    }


def main(arguments: list[str] | None = None) -> None:
    """`python -m lab.evaluation NAME ... --text PATH`: scores saved models on one text."""
    import tyro

    def command(
        names: tyro.conf.Positional[list[str]], text: str, documents: int = 500, save: bool = False, device: str = "cpu"
    ) -> None:
        """Bits per byte, perplexity and top-k accuracy of saved models on one text.

        Args:
            names: folders of trained_models/, or paths to such folders
            text: a .txt, .jsonl or .parquet file, a folder of those, or "storyworld"
            documents: how many documents from its start to score
            save: keep the results in each model's evaluation.json
            device: where to compute: cpu, cuda or mps
        """
        if not names:
            raise ValueError(f"names: none given; there are: {', '.join(list_models()) or 'none yet'}")
        label, texts = text_documents(text, documents)
        print(f"{label}: the first {len(texts):,} documents, fingerprint {documents_fingerprint(texts)}")
        results = {n: evaluate_saved(n, texts, text=label, save=save, device=device, progress=True) for n in names}
        print(markdown([_row(name, result) for name, result in results.items()]))
        print("Nats, perplexity and top-k are per token: compare them under the same tokenizer only.")

    try:
        tyro.cli(command, args=arguments, prog="python -m lab.evaluation")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
