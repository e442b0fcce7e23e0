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
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab.compare_models import choose_documents, find_runs, paired_difference
from lab.evaluation import token_losses
from lab.intervals import draw_documents
from lab.kept import Text, choose_text, given_text, kept, training_documents, weights_of
from lab.plots import read_run
from lab.saving import load_model
from lab.scoring import predictions_of, strip_newlines

PROTOCOL = 2  # rises whenever the same models and text would get another figure, or records another form
WORD = re.compile(r"\s*(?:\w+(?:['’]\w+)*|[^\w\s])")  # white space and what follows it: a word, or one other character
SENTENCE_ENDS = {".", "!", "?", ":", ";", '"', "“", "”", "‘", "’", "'", "…", "-", "—", "–", "(", "*"}
POSITIONS = (0, 50, 100, 200, 400, 800, 1600)
COUNTS = (0, 1, 10, 100, 1000, 10_000)
PHRASES = {"frequency": "words found {} in the training text", "recall": "“{}”", "names": "“{}”"}


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
    for number, document in enumerate(map(strip_newlines, documents)):
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
    return nats_of_words(tok, documents, words, np.concatenate([x.double().numpy() for x in losses]))


def nats_of_words(tok, documents: Sequence[str], words: Words, nats: np.ndarray) -> np.ndarray:
    """The nats of all text tokens of the documents, (tokens,), shared out to the words: (W,). Raises as `word_nats`."""
    sizes = text_sizes(tok, documents)
    per_byte = np.repeat(nats / np.maximum(sizes, 1), sizes)
    return np.add.reduceat(per_byte, words.starts)


def text_sizes(tok, documents: Sequence[str]) -> np.ndarray:
    """Of how many bytes each text token of the documents stands, all documents one after another: (tokens,)."""
    texts = [strip_newlines(document) for document in documents]
    ids = tok.encode_batch(texts, bos=False)
    found = [token_sizes(tok, own, text.encode()) for text, own in zip(texts, ids)]
    return np.concatenate([np.empty(0, dtype=np.int64), *found])


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


def sortings(words: Words, counts: Counter | None) -> dict[str, tuple[list[str], np.ndarray]]:
    """Each way to sort the words: name -> labels, and of each word the number of its label (W,).

    counts: how often words stand in the training text, from `word_counts`; None leaves "frequency" out.
    """
    quarters = 4 * words.places // words.lengths[words.document]
    found = {
        "position": (_ranges(POSITIONS, "bytes"), np.searchsorted(POSITIONS, words.places, side="right") - 1),
        "quarter": (["first quarter", "second quarter", "third quarter", "last quarter"], quarters),
    }
    if counts is not None:
        seen = np.array([counts[word] for word in words.texts])
        found["frequency"] = (_ranges(COUNTS, "times", "never"), np.searchsorted(COUNTS, seen, side="right") - 1)
    return found | {
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


# ---------------------------------------------------------------- sums, and their differences


def kind_sums(nats: np.ndarray, words: Words, labels: Sequence[str], codes: np.ndarray) -> dict[str, dict]:
    """For each kind of word that the text holds: how many `words`, and by document the `bytes` and `nats` of these.

    nats: of each word, (W,).  codes: which label each word has, (W,).
    """
    found = {}
    for code, label in enumerate(labels):
        mask = codes == code
        if mask.any():
            sizes, own = words.per_document(words.sizes * mask), words.per_document(nats * mask)
            found[label] = {"words": int(mask.sum()), "bytes": sizes.astype(int).tolist(), "nats": own.tolist()}
    return found


def kinds_difference(a: Sequence[dict], b: Sequence[dict], **options) -> list[dict]:
    """One row for each kind of word, from the `kind_sums` of each run of A and of B for the same words.

    options: of `paired_difference`.
    A row holds `label`, `words`, `share` (of the bytes), `a` and `b` (bits per byte of these words), the difference
    with its interval, and `contribution`: its part of the whole difference, in bits per byte of the whole text.
    """
    total = sum(sum(kind["bytes"]) for kind in a[0].values())
    rows = []
    for label, kind in a[0].items():
        sizes = np.array(kind["bytes"])
        nats = [np.array([run[label]["nats"] for run in runs]) for runs in (a, b)]  # (runs, documents)
        found, share = paired_difference(*nats, sizes, **options), float(sizes.sum() / total)
        bits = [float(x.mean(0).sum() / math.log(2) / sizes.sum()) for x in nats]
        rows.append(
            {"label": label, "words": kind["words"], "share": share, "a": bits[0], "b": bits[1]}
            | found
            | {"contribution": found["difference"] * share}
        )
    return rows


def sort_difference(
    nats_a: np.ndarray, nats_b: np.ndarray, words: Words, labels: Sequence[str], codes: np.ndarray, **options
) -> list[dict]:
    """`kinds_difference` of nats of words: nats_a, nats_b (runs, W); labels, codes as from `sortings`."""
    sums = ([kind_sums(run, words, labels, codes) for run in runs] for runs in (nats_a, nats_b))
    return kinds_difference(*sums, **options)


# ---------------------------------------------------------------- two saved models


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

    text, documents, with_seeds: as in `compare`.
    counts: of words in the training text; None counts A's own. Where that text is not here, and nothing was kept that
    was counted in it, the words are not sorted by frequency, and a warning says so.
    save: keep the sums of each run in its evaluation.json; what is kept is not computed again (not with own `counts`).
    Returns {"protocol", "a", "b", "text", "fingerprint", "documents", "level", "whole", "by"}: `whole` as from
    `paired_difference`; `by` holds for each way to sort the words the rows of `kinds_difference`.
    Raises: ValueError if a run belongs to both models.
    """
    families = [next(iter(find_runs([name], with_seeds).values())) for name in (a, b)]
    if both := {run.name for run in families[0] if run in families[1]}:
        raise ValueError(f"a={str(a)!r}, b={str(b)!r}: {', '.join(sorted(both))} would stand on both sides; "
                         "with_seeds=False takes the two runs alone")  # fmt: skip
    folders = [[run.folder for run in runs] for runs in families]
    chosen, sums = word_sums(folders, text, documents, counted=a, counts=counts, save=save)
    first = next(iter(sums[0][0].values()))  # any way to sort is complete
    sizes = np.sum([kind["bytes"] for kind in first.values()], axis=0)
    nats = [np.array([_all_nats(kinds) for kinds in runs]) for runs in sums]
    options = {"level": level, "seed": seed, "weights": draw_documents(len(sizes), resamples, seed)}
    by = {name: kinds_difference(*([kinds[name] for kinds in r] for r in sums), **options) for name in sums[0][0]}
    return {
        "protocol": PROTOCOL, "a": Path(a).name, "b": Path(b).name, "text": chosen.name,
        "fingerprint": chosen.fingerprint, "documents": len(sizes), "level": level, "resamples": resamples,
        "seed": seed, "whole": paired_difference(*nats, sizes, **options), "by": by,
    }  # fmt: skip


def _all_nats(kinds: dict[str, dict]) -> np.ndarray:
    """What each document costs, from the sums of its words: (documents,)."""
    return np.sum([kind["nats"] for kind in next(iter(kinds.values())).values()], axis=0)


def word_sums(
    families: Sequence[Sequence[Path]],
    text: str,
    documents: int,
    *,
    counted: str | Path,
    counts: Counter | None = None,
    save: bool = False,
) -> tuple[Text, list[list[dict]]]:
    """The text, and for each run of each family the `kind_sums` of each way to sort its words, kept or computed.

    counted: the model in whose training text frequencies are counted, unless `counts` are given.
    """
    folders = [folder for family in families for folder in family]
    if counts is not None:
        chosen = given_text(*choose_documents(folders[0], text, documents))
        return chosen, [[_sums_of(folder, chosen, counts) for folder in family] for family in families]
    record = read_run(counted).text_fingerprint or f"training text of {Path(counted).name}"
    key = {"protocol": PROTOCOL, "counted_in": record}
    try:
        return _kept_sums(families, choose_text(folders, text, documents, "words", key), key, counted, save)
    except (OSError, ValueError) as error:  # of the training text; if it is of the text itself, the next line says so
        del key["counted_in"]
        found = _kept_sums(families, choose_text(folders, text, documents, "words", key), key, None, save)
        warnings.warn(f"words are not sorted by their frequency in the training text: {error}", stacklevel=3)
        return found


def _kept_sums(families, chosen: Text, key: dict, counted: str | Path | None, save: bool) -> tuple[Text, list]:
    """The answer of `word_sums`; without a model whose training text is `counted`, frequencies are left out."""

    def of(folder: Path) -> dict:
        own = key | {"fingerprint": chosen.fingerprint, "weights": weights_of(folder)}

        def compute() -> dict:
            counts = None if counted is None else training_counts(counted)
            return {"counted_in": None} | own | {"text": chosen.name, "kinds": _sums_of(folder, chosen, counts)}

        kinds = kept(folder, "words", own, compute, save=save)["kinds"]
        return kinds if counted is not None else {name: own for name, own in kinds.items() if name != "frequency"}

    return chosen, [[of(folder) for folder in family] for family in families]


def _sums_of(folder: Path, text: Text, counts: Counter | None) -> dict[str, dict]:
    """The `kind_sums` of each way to sort a text's words, under a saved model; nats to 2 decimals, to be kept."""
    texts, tok = text.read(), load_model(folder)[1]
    words = split_words(texts)
    nats = nats_of_words(tok, texts, words, predictions_of(folder, texts).nats)
    found = {name: kind_sums(nats, words, *sorting) for name, sorting in sortings(words, counts).items()}
    for kind in (kind for kinds in found.values() for kind in kinds.values()):
        kind["nats"] = [round(x, 2) or 0 for x in kind["nats"]]
    return found


def family_word_nats(name: str | Path, texts: Sequence[str], words: Words, with_seeds: bool = True) -> np.ndarray:
    """Nats of each word under each run of a saved model: (runs, W)."""
    (runs,) = find_runs([name], with_seeds).values()
    return np.stack([word_nats(*load_model(run.folder)[:2], texts, words) for run in runs])


_counted: dict[str, Counter] = {}  # by the text's fingerprint: a big text is read once


def training_counts(name: str | Path) -> Counter:
    """How often each word stands in the text that a saved model was trained on. Raises as `training_documents`."""
    fingerprint, documents = training_documents(name)
    if fingerprint not in _counted:
        _counted[fingerprint] = word_counts(documents)
    return _counted[fingerprint]


def story_difference(a: str | Path, b: str | Path, story: str, *, with_seeds: bool = True) -> dict:
    """One story word by word: {"a", "b", "pieces" (each with the white space before it), "bits_a", "bits_b"}.

    Bits are those of the whole word, the mean over a model's runs.
    """
    words = split_words([story])
    bits = [family_word_nats(name, [story], words, with_seeds).mean(0) / math.log(2) for name in (a, b)]
    pieces = _pieces(strip_newlines(story))
    return {"a": Path(a).name, "b": Path(b).name, "pieces": pieces, "bits_a": list(bits[0]), "bits_b": list(bits[1])}


def findings(found: dict) -> list[str]:
    """In words: for each way to sort words by what they are, where each of the two is ahead most, beyond noise."""
    lines = []
    for name, sign in ((found["a"], -1), (found["b"], 1)):
        for sorting, phrase in PHRASES.items():
            rows = [r for r in found["by"].get(sorting, []) if r["told_apart"] and sign * r["difference"] > 0]
            best = max(rows, key=lambda row: abs(row["difference"]), default=None)
            lines += [] if best is None else [_finding(name, best, phrase)]
    lines = list(dict.fromkeys(lines))  # punctuation is a kind of its own in two sortings
    return lines or ["on no kind of words is either better beyond noise"]


def _finding(name: str, row: dict, phrase: str) -> str:
    figure = f"{abs(row['difference']):.4f} ± {row['half_width']:.4f} bits per byte"
    return f"{name} is better by {figure} on {phrase.format(row['label'])}: {row['share']:.1%} of the text"


def table(found: dict):
    """A breakdown as a DataFrame: a row for each kind of word, bits per byte."""
    import pandas as pd

    columns = ("share", "a", "b", "difference", "half_width", "contribution")
    rows = {(name, row["label"]): {c: row[c] for c in columns} for name, rows in found["by"].items() for row in rows}
    frame = pd.DataFrame(rows).T
    return frame.rename(columns={"a": found["a"], "b": found["b"], "half_width": "±"})
