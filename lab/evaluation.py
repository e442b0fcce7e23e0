"""How well a model predicts a text: bits per byte, nats per token, perplexity and top-k accuracy.

    evaluate(model, tok, documents)            # {"bits_per_byte": 0.87, "nats_per_token": 2.16, ...}
    token_losses(model, tok, documents)        # one tensor per document, for paired comparisons
    results_of(["a", "b"])                     # of saved models: what their folders hold, computed where it is missing

    python -m lab.evaluation 0.5m_tall_and_skinny 2m --text stories.txt --documents 500 --save --compare

The protocol, which makes two figures comparable. A document's outer newlines are stripped and BOS is put before it;
each of its tokens is then predicted once from all tokens before it. A document longer than the context T is cut into
windows, inputs ids[s:s+T] and targets ids[s+1:s+T+1] for s = 0, T, 2T, ...: whatever stands in an earlier window is not
seen. Only tokens of the text are scored: BOS is given, and EOS, whose prediction spells no byte, is left out.
"""

import math
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from lab.files import read_json, shown
from lab.kept import (
    check_names,
    documents_fingerprint,
    evaluation_file,
    own_validation,
    read_section,
    text_documents,
    weights_of,
    write_sections,
)  # fmt: skip
from lab.minimal_pairs import minimal_pairs  # noqa: F401 (offered from here, as is multiple_choice)
from lab.multiple_choice import multiple_choice  # noqa: F401
from lab.plots import read_run
from lab.saving import list_models, load_model, model_folder
from lab.scoring import encode_documents, score_ids, score_losses, strip_newlines

PROTOCOL = 1  # rises whenever the same model and text would get another figure
TOP = (1, 3, 5, 10)


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
    ids = encode_documents(tok, texts)
    scores = score_ids(model, ids, batch_size=batch_size, progress=progress)
    num_tokens = len(scores.losses)
    num_bytes = sum(len(strip_newlines(text).encode()) for text in texts)
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
    ids = encode_documents(tok, documents)
    losses = score_losses(model, ids, batch_size=batch_size, progress=progress)
    return list(losses.split([len(document) - 1 for document in ids]))


# ---------------------------------------------------------------- saved models and their evaluation.json


def evaluate_saved(
    name: str | Path, documents: Sequence[str], *, text: str, save: bool = False, device: str = "cpu", progress=False
) -> dict:
    """Scores a saved model: the result of `evaluate`, with what it was measured on and how long that took.

    text: the name that the documents go by.  save: keep the result in the model's evaluation.json, in place of an
    earlier one for the same documents.
    """
    weights = weights_of(name)
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
        write_sections(name, {"protocol": PROTOCOL, "results": [*kept, result]})
    return result


def read_results(name: str | Path) -> list[dict]:
    """The results in a model's evaluation.json, in the order in which they were saved; [] if there is no such file.

    What another protocol measured, or other weights than the folder now holds, is left out with a warning.
    """
    path = evaluation_file(name)
    content = read_json(path) if path.is_file() else {}
    if "results" not in content:  # there may be other sections
        return []
    if content.get("protocol") != PROTOCOL:
        other = content.get("protocol")
        warnings.warn(f"{shown(path)} is left out: measured by protocol {other}, not {PROTOCOL}", stacklevel=2)
        return []
    weights, results = weights_of(name), read_section(name, "results")
    valid = [result for result in results if result.get("weights") == weights]
    if len(valid) < len(results):
        warnings.warn(
            f"{shown(path)}: results for other weights or settings than the folder now holds are left out", stacklevel=2
        )
    return valid


def results_of(
    names: Sequence[str | Path],
    text: str = "auto",
    *,
    max_documents: int = 500,
    save: bool = True,
    progress: bool = False,
    device: str = "cpu",
) -> dict[str, dict]:
    """A result for each saved model, by its folder's name. What evaluation.json holds is not computed again.

    text: "auto" takes each model's first saved result; a model without one is scored on the validation text of its own
    training. Otherwise a path or a name as in `text_documents`, the same for all models.
    save: keep new results in evaluation.json, too.
    Raises: FileNotFoundError if there is no such model, or it has no saved result and its text is not here; ValueError
    for two folders of one name.
    """
    check_names([read_run(name).folder for name in names])
    chosen = None if text == "auto" else text_documents(text, max_documents)
    results = {}
    for name in names:
        saved = read_results(name)
        if chosen is None and saved:
            result = saved[0]
        else:
            label, documents = chosen or _own_text(name, max_documents)
            fingerprint = documents_fingerprint(documents)
            result = next((r for r in saved if r["fingerprint"] == fingerprint), None)
            result = result or evaluate_saved(name, documents, text=label, save=save, device=device, progress=progress)
        results[model_folder(name).name] = result
    return results


def _own_text(name: str | Path, max_documents: int) -> tuple[str, list[str]]:
    try:
        return own_validation(name, max_documents)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{model_folder(name).name} has no result in its evaluation.json, and the text that it was trained beside "
            f"is not here ({error}): pass text=PATH, or run `python -m lab.evaluation NAME ... --text PATH --save`"
        ) from error


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


def main(arguments: list[str] | None = None) -> None:
    """`python -m lab.evaluation NAME ... [--text PATH] [--save] [--compare]`: measures saved models."""
    import tyro

    def command(
        names: tyro.conf.Positional[list[str]] = [],  # noqa: B006 (tyro reads it)
        text: str = "auto",
        documents: int = 500,
        save: bool = False,
        compare: bool = False,
        pairs: list[str] = [],  # noqa: B006
        questions: list[str] = [],  # noqa: B006
        all: bool = False,
        device: str = "cpu",
    ) -> None:
        """How well saved models predict a text, which is better and how sure that is, and what they know.

        What a model's evaluation.json holds is not measured again: an interrupted call goes on where it stopped.

        Args:
            names: folders of trained_models/, or paths to such folders
            text: a .txt, .jsonl or .parquet file, a folder of those, or "storyworld"; "auto": what was scored before
            documents: how many documents from its start to score
            save: keep everything in the models' evaluation.json, with all that model_evaluation.ipynb shows: costs of
                documents, kinds of words, positions, calibration beside n-gram baselines
            compare: print the ranking, and for each two models a sentence with the difference and its interval
            pairs: files of minimal pairs (BLiMP.zip, a .jsonl file), or "storyworld"
            questions: files of multiple-choice questions
            all: all models of trained_models/
            device: where to compute the scores of the text: cpu, cuda or mps; all else is computed on the CPU
        """
        from lab.report import report

        chosen = [*names, *(name for name in list_models() if all and name not in names)]
        report(chosen, text, documents, save=save, comparing=compare, pairs=pairs, questions=questions, device=device)

    try:
        tyro.cli(command, args=arguments, prog="python -m lab.evaluation")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
