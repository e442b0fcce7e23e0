"""What the evaluation.json of a model's folder keeps, so that nothing that was measured is measured again.

    kept(name, "documents", key, compute, save=True)      # the record for this key: read, or computed and written
    find_records(name, "minimal_pairs", {"protocol": 1})  # what a folder holds for the weights that it now has
    choose_text(names, "auto", 500, "documents", key)     # the text that all of these models have records for

The file is an object of sections; each is a list of records. A record quotes what it depends on: the protocol that
measured it, the fingerprint of the text, and under "weights" that of the model (`weights_of`). One of another model or
protocol is stale: it is named in a warning, never shown.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lab.files import json_text, read_json, shown, write_atomic
from lab.saving import model_folder
from lab.scoring import strip_newlines

LINE = 120  # characters that a line of evaluation.json has at most, but for lists of numbers

# ---------------------------------------------------------------- records


def kept(name: str | Path, section: str, key: dict, compute: Callable[[], dict], *, save: bool) -> dict:
    """A record of a model's evaluation.json, or, where it has none for this key, what `compute` returns, and the key.

    section: the list in the file that holds such records, beside "protocol" and "results" of lab/evaluation.py.
    key: what the record depends on, as JSON holds it; "protocol" and "weights" belong in it.
    save: write a computed record, in place of one that differs in protocol or weights only. All else in the file stays.
    """
    for record in read_section(name, section):
        if matches(record, key):
            return record
    record = key | compute()
    if save:
        keep(name, section, key, record)
    return record


def keep(name: str | Path, section: str, key: dict, record: dict) -> None:
    """Writes a record in place of those that differ from `key` in protocol or weights only."""
    subject = {k: v for k, v in key.items() if k not in ("protocol", "weights")}
    others = [other for other in read_section(name, section) if not matches(other, subject)]
    write_sections(name, {section: [*others, record]})


def read_section(name: str | Path, section: str) -> list[dict]:
    """The records under one key of a model's evaluation.json, stale ones too; [] where there are none.

    Raises: ValueError if something else stands there.
    """
    path = evaluation_file(name)
    records = read_json(path).get(section, []) if path.is_file() else []
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{shown(path)}: {section} must be a list of objects: restore the file, or delete it")
    return records


def find_records(name: str | Path, section: str, key: dict) -> list[dict]:
    """The records that match `key` and belong to the weights that the folder now holds.

    A stale one, which would match but for its protocol or its weights, is left out with a warning that names it.
    """
    weights = weights_of(name)
    subject = {k: v for k, v in key.items() if k != "protocol"}
    found = [record for record in read_section(name, section) if matches(record, subject)]
    good = [r for r in found if matches(r, key) and r.get("weights", weights) == weights]
    for record in (r for r in found if r not in good):
        of = record.get("text") or record.get("name") or record.get("fingerprint")
        other = f"protocol {record.get('protocol')}, not {key.get('protocol')}"
        why = "other weights or settings than the folder now holds" if matches(record, key) else other
        warnings.warn(f"{shown(evaluation_file(name))}: {section} of {of} left out: measured with {why}", stacklevel=2)
    return good


def kept_sets(names: Sequence[str | Path], section: str, protocol: object) -> dict[str, dict[str, dict]]:
    """{name of a set of questions: {model: its record}} of all that these models keep in a section.

    Two sets of one name are told apart by the number of their questions, or their fingerprint.
    """
    found: dict[tuple, dict[str, dict]] = {}
    for name in names:
        for record in find_records(name, section, {"protocol": protocol}):
            of = (record["name"], record["count"], record["fingerprint"])
            found.setdefault(of, {})[model_folder(name).name] = record
    labels = [_label(of, list(found)) for of in found]
    return dict(zip(labels, found.values()))


def _label(of: tuple[str, int, str], others: list[tuple]) -> str:
    """As much of (name, count, fingerprint) as tells a set apart from the others."""
    name, count, fingerprint = of
    if sum(other[0] == name for other in others) == 1:
        return name
    same_count = sum(other[:2] == of[:2] for other in others) > 1
    return f"{name} ({count:,}{f', {fingerprint}' if same_count else ''})"


def matches(record: dict, key: dict) -> bool:
    """Whether a record says the same as `key` in every field of the key."""
    return all(record.get(field) == value for field, value in key.items())


def check_names(names: Iterable[str | Path]) -> None:
    """Raises ValueError if two models' folders have one name, so that one would stand for both in every result."""
    folders: dict[str, Path] = {}
    for folder in map(model_folder, names):
        other = folders.setdefault(folder.name, folder)
        if other.resolve() != folder.resolve():
            raise ValueError(f"{shown(other)} and {shown(folder)} have the same name: rename one of them")


def weights_of(name: str | Path) -> str | None:
    """What evaluation.json quotes of the model that was measured: a fingerprint of all that decides what it says.

    That is its weights, its settings (one changed by hand makes another model) and its tokenizer's fingerprint. None
    where there is no weights file.
    """
    folder = model_folder(name)
    weights, config = folder / "model.safetensors", folder / "model_config.json"
    if not weights.is_file():
        return None
    digest = hashlib.sha256(weights.read_bytes())
    if config.is_file():
        content = read_json(config)
        digest.update(json.dumps([content.get("model"), content.get("tokenizer")], sort_keys=True).encode())
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------- the file


def evaluation_file(name: str | Path) -> Path:
    return model_folder(name) / "evaluation.json"


def write_sections(name: str | Path, sections: dict) -> None:
    """Replaces these keys of a model's evaluation.json; everything else in it stays.

    Raises: ValueError for a number that JSON has not (infinity, not a number).
    """
    path = evaluation_file(name)
    content = (read_json(path) if path.is_file() else {}) | sections
    json_text(content, shown(path))  # names the key that can't be written
    write_atomic(path, compact_json(content) + "\n")


def compact_json(value: object, indent: int = 0) -> str:
    """JSON with one line for whatever fits in it, and for each list of numbers, however long."""
    line = json.dumps(value, ensure_ascii=False)
    numbers = isinstance(value, list) and all(isinstance(item, int | float) for item in value)
    if not isinstance(value, dict | list) or numbers or (indent and indent + len(line) < LINE):
        return line
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [f"{pad}{json.dumps(k, ensure_ascii=False)}: {compact_json(v, indent + 2)}" for k, v in value.items()]
    else:
        parts = [pad + compact_json(item, indent + 2) for item in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([first, ",\n".join(parts), " " * indent + last])


# ---------------------------------------------------------------- texts


@dataclass(frozen=True)
class Text:
    """Documents to score models on, known by their fingerprint even where they are not here themselves."""

    name: str
    fingerprint: str
    documents: list[str] | None  # None: not here; what is kept can be shown, nothing can be computed

    def read(self) -> list[str]:
        """The documents. Raises FileNotFoundError if they are not here."""
        if self.documents is None:
            raise FileNotFoundError(
                f"text={self.name!r} is not here, and not everything that is asked for was kept: pass text=PATH"
            )
        return self.documents


def given_text(name: str, documents: Sequence[str]) -> Text:
    """A `Text` of documents that are at hand."""
    return Text(name, documents_fingerprint(documents), list(documents))


def choose_text(names: Sequence[str | Path], text: str, documents: int, section: str, key: dict) -> Text:
    """The text that these models are to be scored on.

    text: a path, or a name as in `text_documents`, whose first `documents` are taken. "auto": the text for which all of
    the models have a record that matches `key` in that section, which need not be here; else the validation text of the
    first model's training, with a warning that names the models without a record.
    Raises: FileNotFoundError, saying what is missing, if there is neither.
    """
    if text != "auto":
        return given_text(*text_documents(text, documents))
    held = {name: {r["fingerprint"]: r for r in find_records(name, section, key)} for name in names}
    first = next(iter(held.values()))
    for fingerprint, record in first.items():
        if all(fingerprint in own for own in held.values()):
            return Text(record["text"], fingerprint, None)
    shared = next((fingerprint for own in held.values() for fingerprint in own), None)
    without = [model_folder(name).name for name, own in held.items() if shared not in own]
    missing = f"no text has {section} kept for all of these models (missing: {', '.join(without)})"
    try:
        found = given_text(*own_validation(names[0], documents))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{missing}, and the validation text of {model_folder(names[0]).name} is not here ({error}): "
            "pass text=PATH, or run `python -m lab.evaluation NAME ... --text PATH --save`"
        ) from error
    if any(held.values()):
        warnings.warn(f"{missing}: all of them are scored on {found.name} instead", stacklevel=2)
    return found


def text_documents(text: str, max_documents: int) -> tuple[str, list[str]]:
    """Name and first documents of a text: of a file or folder from its start, of "storyworld" or "tinystories" those
    of the validation split. Raises: as `open_source`; ValueError if it holds no text."""
    from lab.data import open_source

    if max_documents < 1:
        raise ValueError(f"documents={max_documents} must be at least 1")
    source = open_source(text, valid_dataset=text)
    documents = list(islice(source.documents("valid"), max_documents))
    if not documents:
        raise ValueError(f"text={source.name!r} holds no text, so there is nothing to score")
    return source.name, documents


def own_validation(name: str | Path, max_documents: int) -> tuple[str, list[str]]:
    """Name and documents of the validation split that a saved model was trained beside.

    Raises: as `training_documents`.
    """
    from lab.data import validation_documents

    source = _same_source(name)
    return f"{source.name}, validation", validation_documents(source, max_documents)


def training_source(name: str | Path):
    """The text that a saved model was trained on, a `lab.data.Source`.

    Raises: FileNotFoundError if the model's folder does not say which; as `open_source` if it isn't there.
    """
    from lab.data import open_source

    path = model_folder(name) / "train_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path)} is missing, so the model's own text is not known: pass text=PATH")
    config = read_json(path)
    if "dataset" not in config:
        raise FileNotFoundError(f"{shown(path)} does not say on what text the model was trained: pass text=PATH")
    limit = {"limit_bytes": config["dataset_limit"]} if "dataset_limit" in config else {}
    return open_source(config["dataset"], valid_dataset=config.get("valid_dataset", ""), **limit)


def training_documents(name: str | Path) -> tuple[str, Iterator[str]]:
    """(fingerprint, documents) of the text that a saved model was trained on.

    Raises: FileNotFoundError if the folder does not say which, or it is no longer the text that run.json quotes; as
    `open_source` (OSError, ValueError) if it isn't here.
    """
    source = _same_source(name)
    return source.fingerprint, source.documents("train")


def _same_source(name: str | Path):
    """`training_source`, if it still is the text that run.json quotes. Raises as `training_documents`."""
    source, path = training_source(name), model_folder(name) / "run.json"
    recorded = read_json(path).get("text", {}).get("fingerprint") if path.is_file() else None
    if recorded not in (None, source.fingerprint):
        raise FileNotFoundError(f"{source.name} is another text now than the one that {model_folder(name).name} read")
    return source


def documents_fingerprint(documents: Iterable[str]) -> str:
    """16 hexadecimal digits that stand for these documents in this order."""
    from tokenizer import text_fingerprint

    return text_fingerprint(map(strip_newlines, documents))[:16]
