"""Where the difference of two models comes from: early or late in a story, rare words, repeated words, names.

    found = breakdown("a", "b", text="stories.txt")     # {"by": {"frequency": [{"label": "never", ...}, ...], ...}}
    story_difference("a", "b", story)                   # word by word, for the picture

Everything is counted in words of the text, which are the same under every tokenizer: a token's nats are shared out
evenly over the bytes that it spells, and each word (with the white space before it) gets those of its bytes. So models
with other tokenizers are compared on exactly the same pieces of text, in bits per byte. Each way to sort the words is
complete: the contributions of its rows add up to the whole difference.

    position    how many bytes of the story stand before the word: what there was to read
    quarter     of the story's bytes
    frequency   how often the word stands in the training text
    recall      whether the word, or the word together with the one before it, stood in this story already. A repeated
                pair can be copied from the context; a new word cannot (as in Arora et al. 2023, arXiv 2312.04927)
    names       capitalised words that begin no sentence, at their first mention and later
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab import evaluation
from lab.compare_models import choose_documents, draw_documents, find_runs, kept, paired_difference, weights_of
from lab.evaluation import documents_fingerprint, token_losses
from lab.files import read_json
from lab.saving import load_model, model_folder

PROTOCOL = 1  # rises whenever the same models and text would get another figure
WORD = re.compile(r"\s*(?:\w+(?:['’]\w+)*|[^\w\s])")  # white space and what follows it: a word, or one other character
SENTENCE_ENDS = {".", "!", "?", ":", ";", '"', "“", "”", "‘", "’", "'", "…", "-", "—", "–", "(", "*"}
POSITIONS = (0, 50, 100, 200, 400, 800, 1600)
COUNTS = (0, 1, 10, 100, 1000, 10_000)


# ---------------------------------------------------------------- text to words


@dataclass(frozen=True)
class Words:
    """Documents cut into words, all one after another; every byte of the text belongs to exactly one word."""

    texts: list[str]  # of each word, without the white space before it
    new_lines: np.ndarray  # (W,) bool: whether a line begins with it
    starts: np.ndarray  # (W,) its first byte, counted through all documents
    sizes: np.ndarray  # (W,) bytes
    document: np.ndarray  # (W,) number of its document
    lengths: np.ndarray  # (documents,) bytes of each

    @property
    def places(self) -> np.ndarray:
        """Bytes of its document that stand before each word: (W,)."""
        return self.starts - (np.cumsum(self.lengths) - self.lengths)[self.document]

    def per_document(self, values: np.ndarray) -> np.ndarray:
        """Sums the words' values by document: (W,) -> (documents,)."""
        return np.bincount(self.document, weights=values, minlength=len(self.lengths))


def split_words(documents: Iterable[str]) -> Words:
    """Cuts documents (outer newlines stripped, as when they are scored) into words.

    Raises: ValueError if there is no word at all.
    """
    pieces, owner, lengths = [], [], []
    for number, document in enumerate(map(evaluation._strip, documents)):
        found = _pieces(document)
        pieces += found
        owner += [number] * len(found)
        lengths.append(len(document.encode()))
    if not pieces:
        raise ValueError(f"documents: none of the {len(lengths)} given holds a word, so there is nothing to sort")
    sizes = np.array([len(piece.encode()) for piece in pieces])
    new_lines = np.array(["\n" in piece[: len(piece) - len(piece.lstrip())] for piece in pieces])
    texts = [piece.strip() for piece in pieces]
    return Words(texts, new_lines, np.cumsum(sizes) - sizes, sizes, np.array(owner), np.array(lengths))


def _pieces(document: str) -> list[str]:
    """The words of a document with the white space before them; what stands behind the last is added to it."""
    pieces = WORD.findall(document)
    rest = document[sum(map(len, pieces)) :]
    if rest:
        pieces = [*pieces[:-1], pieces[-1] + rest] if pieces else [rest]
    return pieces


def word_counts(documents: Iterable[str]) -> Counter:
    """How often each word stands in a text; capital letters count as others."""
    counts: Counter = Counter()
    for document in documents:
        counts.update(piece.strip() for piece in _pieces(document))
    return counts


# ---------------------------------------------------------------- nats of tokens to nats of words


def word_nats(model, tok, documents: Sequence[str], words: Words, *, batch_size: int = 16) -> np.ndarray:
    """Negative log-likelihood of each word in nats: (W,) float64. Their sum is that of all tokens.

    Raises: ValueError if the tokens do not spell the documents.
    """
    losses = token_losses(model, tok, documents, batch_size=batch_size)
    texts = [evaluation._strip(document) for document in documents]
    per_byte = [np.empty(0)]
    for text, ids, nats in zip(texts, tok.encode_batch(texts, bos=False), losses):
        sizes = token_sizes(tok, ids, text.encode())
        per_byte.append(np.repeat(nats.double().numpy() / np.maximum(sizes, 1), sizes))
    return np.add.reduceat(np.concatenate(per_byte), words.starts)


def token_sizes(tok, ids: Sequence[int], text: bytes) -> np.ndarray:
    """How many bytes of the text each token stands for: (tokens,), with the sum len(text).

    An unknown token stands for what lies between its neighbours. Raises: ValueError if the tokens do not spell it.
    """
    pieces = [tok.token_bytes(i) for i in ids]
    sizes = np.array([len(piece) for piece in pieces], dtype=np.int64)
    spelt = b"".join(pieces)
    if spelt == text:
        return sizes
    if spelt == b" " + text and sizes[0] > 1:  # tokenizers of other projects put a space in front
        sizes[0] -= 1
        return sizes
    place = 0
    for unknown, group in itertools.groupby(range(len(ids)), key=lambda i: ids[i] == tok.unk_id):
        group = list(group)
        if unknown:  # up to where the known tokens behind it begin; several share it
            known = itertools.takewhile(lambda i: ids[i] != tok.unk_id, range(group[-1] + 1, len(ids)))
            after = b"".join(pieces[i] for i in known)
            end = text.find(after, place + len(group)) if after else len(text)
            sizes[group] = np.diff(np.linspace(place, end, len(group) + 1).astype(int))
            place = end
        else:
            run = b"".join(pieces[i] for i in group)
            if text[place : place + len(run)] != run:
                break
            place += len(run)
    if place != len(text) or (sizes < 0).any():
        raise ValueError(f"tokenizer={tok.name!r}: its tokens do not spell the text from byte {place} on")
    return sizes


# ---------------------------------------------------------------- ways to sort the words


def sortings(words: Words, counts: Counter) -> dict[str, tuple[list[str], np.ndarray]]:
    """Each way to sort the words: name -> labels, and of each word the number of its label (W,).

    counts: how often words stand in the training text, from `word_counts`.
    """
    quarters = np.minimum(4 * words.places // words.lengths[words.document], 3)
    seen = np.array([counts[word] for word in words.texts])
    return {
        "position": (_ranges(POSITIONS, "bytes"), np.searchsorted(POSITIONS, words.places, side="right") - 1),
        "quarter": (["first quarter", "second quarter", "third quarter", "last quarter"], quarters),
        "frequency": (_ranges(COUNTS, "times", "never"), np.searchsorted(COUNTS, seen, side="right") - 1),
        "recall": (["pair seen before", "word seen before", "new word", "punctuation"], _recall(words)),
        "names": (["name, first mention", "name, again", "other word", "punctuation"], _names(words)),
    }


def _ranges(edges: Sequence[int], unit: str, zero: str = "") -> list[str]:
    """Labels for 0..49, 50..99, ...: "0–49 bytes"; a first range that holds 0 alone may have a name of its own."""
    labels = [f"{low:,}–{high - 1:,} {unit}" for low, high in itertools.pairwise(edges)] + [f"{edges[-1]:,}+ {unit}"]
    return [zero or labels[0], *labels[1:]]


def _is_word(text: str) -> bool:
    return bool(text) and (text[0].isalnum() or text[0] == "_")


def _recall(words: Words) -> np.ndarray:
    """0 pair seen before, 1 word seen before, 2 new word, 3 punctuation."""
    codes = np.empty(len(words.texts), dtype=np.int64)
    seen: set = set()
    document, before = -1, ""
    for i, (text, owner) in enumerate(zip(words.texts, words.document)):
        if owner != document:
            seen, document, before = set(), owner, ""
        codes[i] = 3 if not _is_word(text) else 0 if (before, text) in seen else 1 if text in seen else 2
        seen |= {text, (before, text)}
        before = text
    return codes


def _names(words: Words) -> np.ndarray:
    """0 name at its first mention, 1 name mentioned before, 2 other word, 3 punctuation.

    A word that is a name somewhere in its story is one at the beginning of a sentence, too.
    """
    inner = _inner_capitals(words)
    names = {(owner, text) for owner, text, is_name in zip(words.document, words.texts, inner) if is_name}
    codes = np.empty(len(words.texts), dtype=np.int64)
    mentioned: set = set()
    for i, key in enumerate(zip(words.document, words.texts)):
        codes[i] = 3 if not _is_word(key[1]) else 2 if key not in names else 1 if key in mentioned else 0
        mentioned.add(key)
    return codes


def _inner_capitals(words: Words) -> np.ndarray:
    """Whether each word begins with a capital letter and stands inside a sentence; "I" does not count. (W,) bool."""
    before = [".", *words.texts[:-1]]
    first = np.concatenate([[True], words.document[1:] != words.document[:-1]])
    found = [
        text[:1].isupper() and not starts and not new_line and last not in SENTENCE_ENDS
        and re.split(r"['’]", text)[0] != "I"
        for text, last, starts, new_line in zip(words.texts, before, first, words.new_lines)
    ]  # fmt: skip
    return np.array(found)


# ---------------------------------------------------------------- two models


def breakdown(
    a: str | Path,
    b: str | Path,
    text: str = "auto",
    *,
    documents: int = 300,
    counts: Counter | None = None,
    with_seeds: bool = True,
    save: bool = False,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """The difference of two saved models, bits per byte of A minus those of B, by kinds of words.

    text, documents, with_seeds: as in `compare`.  counts: of words in the training text; None counts A's own.
    save: keep the result in A's evaluation.json; what is kept there is not computed again (not with own `counts`).
    Returns {"protocol", "a", "b", "text", "fingerprint", "documents", "level", "whole", "by"}: `whole` as from
    `paired_difference`; `by` holds for each way to sort the words the rows of `sort_difference`.
    """
    label, texts = choose_documents(a, text, documents)
    runs = [run for name in (a, b) for run in next(iter(find_runs([name], with_seeds).values()))]

    def compute() -> dict:
        words = split_words(texts)
        nats = [family_word_nats(name, texts, words, with_seeds) for name in (a, b)]
        options = {"level": level, "seed": seed, "weights": draw_documents(len(texts), resamples, seed)}
        sorted_words = sortings(words, training_counts(a) if counts is None else counts)
        by = {
            name: sort_difference(*nats, words, labels, codes, **options)
            for name, (labels, codes) in sorted_words.items()
        }
        whole = paired_difference(*(_by_document(x, words) for x in nats), words.lengths, **options)
        return {"text": label, "documents": len(texts), "whole": whole, "by": by}

    key = {
        "protocol": PROTOCOL, "weights": [weights_of(run.folder) for run in runs], "a": Path(a).name,
        "b": Path(b).name, "fingerprint": documents_fingerprint(texts), "level": level, "resamples": resamples,
        "seed": seed,
    }  # fmt: skip
    return key | compute() if counts is not None else kept(a, "breakdown", key, compute, save=save)


def sort_difference(
    nats_a: np.ndarray, nats_b: np.ndarray, words: Words, labels: Sequence[str], codes: np.ndarray, **options
) -> list[dict]:
    """One row for each kind of word that the text holds.

    nats_a, nats_b: (runs, W).  codes: (W,), which label each word has.  options: of `paired_difference`.
    A row holds `label`, `words`, `share` (of the bytes), `a` and `b` (bits per byte of these words), the difference
    with its interval, and `contribution`: its part of the whole difference, in bits per byte of the whole text.
    """
    rows = []
    for code, label in enumerate(labels):
        mask = codes == code
        if not mask.any():
            continue
        sizes = words.per_document(words.sizes * mask)
        a, b = (_by_document(nats * mask, words) for nats in (nats_a, nats_b))
        found = paired_difference(a, b, sizes, **options)
        share = sizes.sum() / words.lengths.sum()
        bits = [float(x.mean(0).sum() / math.log(2) / sizes.sum()) for x in (a, b)]
        rows.append(
            {"label": label, "words": int(mask.sum()), "share": float(share), "a": bits[0], "b": bits[1]}
            | found
            | {"contribution": found["difference"] * float(share)}
        )
    return rows


def _by_document(nats: np.ndarray, words: Words) -> np.ndarray:
    """(runs, W) -> (runs, documents)"""
    return np.stack([words.per_document(run) for run in nats])


def family_word_nats(name: str | Path, texts: Sequence[str], words: Words, with_seeds: bool = True) -> np.ndarray:
    """Nats of each word under each run of a saved model: (runs, W)."""
    (runs,) = find_runs([name], with_seeds).values()
    return np.stack([word_nats(*load_model(run.folder)[:2], texts, words) for run in runs])


def training_counts(name: str | Path) -> Counter:
    """How often each word stands in the text that a saved model was trained on. Raises as `open_source`."""
    return word_counts(training_source(name).documents("train"))


def training_source(name: str | Path):
    """The text that a saved model was trained on, a `lab.data.Source`.

    Raises: FileNotFoundError if the model's folder does not say which, or if it isn't there.
    """
    from lab.data import open_source

    config = read_json(model_folder(name) / "train_config.json")
    limit = {"limit_bytes": config["dataset_limit"]} if "dataset_limit" in config else {}
    return open_source(config["dataset"], valid_dataset=config.get("valid_dataset", ""), **limit)


def story_difference(a: str | Path, b: str | Path, story: str, *, with_seeds: bool = True) -> dict:
    """One story word by word: {"a", "b", "pieces" (each with the white space before it), "bits_a", "bits_b"}.

    Bits are those of the whole word, the mean over a model's runs.
    """
    words = split_words([story])
    bits = [family_word_nats(name, [story], words, with_seeds).mean(0) / math.log(2) for name in (a, b)]
    pieces = _pieces(evaluation._strip(story))
    return {"a": Path(a).name, "b": Path(b).name, "pieces": pieces, "bits_a": list(bits[0]), "bits_b": list(bits[1])}


def table(found: dict):
    """A breakdown as a DataFrame: a row for each kind of word, bits per byte."""
    import pandas as pd

    columns = ("share", "a", "b", "difference", "half_width", "contribution")
    rows = {(name, row["label"]): {c: row[c] for c in columns} for name, rows in found["by"].items() for row in rows}
    frame = pd.DataFrame(rows).T
    return frame.rename(columns={"a": found["a"], "b": found["b"], "half_width": "±"})
