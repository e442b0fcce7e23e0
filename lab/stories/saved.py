"""Saved models: their completions kept in the cache, and what these come to in each model's evaluation.json."""

import hashlib
import json
import reprlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from lab.compare_models import runs_of
from lab.data import Source, cache_folder
from lab.files import shown
from lab.journal import add_to_journal, read_journal
from lab.kept import documents_fingerprint, find_records, kept, matches, read_section, training_source, weights_of
from lab.plots import Run, read_run
from lab.saving import load_model
from lab.stories.evaluation import evaluate_stories
from lab.stories.prompts import read_prompts
from lab.stories.writing import Decoding, write_stories

PROTOCOL = 1  # rises whenever the same model and prompts would get other figures


def stories_of(
    names: Sequence[str | Path],
    prompts: str | Path | Sequence[str] = "storyworld",
    *,
    decoding: Decoding | None = None,
    with_seeds: bool = True,
    save: bool = False,
    progress: bool = False,
) -> dict[str, dict]:
    """What saved models write, a record for each run, by its name. What evaluation.json keeps is not computed again.

    names: folders of trained_models/, or paths.  with_seeds: their runs with other seeds, too (name-seed2, ...).
    prompts: as in `read_prompts`.  save: keep new records in each model's evaluation.json, section "stories".
    A record holds what `evaluate_stories` returns, but of the stories themselves three only (`samples`; all of them:
    `completions_of`), and what it depends on. Where the training text is not at hand, a warning says so, and there are
    neither overlaps nor a reference.
    Raises: ValueError or OSError for a bad file, model or setting.
    """
    decoding = decoding or Decoding()
    label, texts = read_prompts(prompts)
    runs = runs_of(names, with_seeds)
    return {run.name: _record_of(run, label, texts, decoding, save, progress) for run in runs}


def kept_stories(
    names: Sequence[str | Path], prompts: str | None = None, *, with_seeds: bool = True
) -> dict[str, dict]:
    """The records that models' evaluation.json keep for their present weights; runs without one are left out.

    prompts: the name of the file that they were made with; None: whatever was saved first. Of several, one that was
    made with the training text at hand is preferred, because only that knows overlaps.
    """
    key = {"protocol": PROTOCOL} | ({} if prompts is None else {"name": prompts})
    found = {run.name: find_records(run.folder, "stories", key) for run in runs_of(names, with_seeds)}
    return {
        name: max(records, key=lambda record: record.get("text_at_hand", False))
        for name, records in found.items()
        if records
    }


def _record_of(run: Run, label: str, prompts: list[str], decoding: Decoding, save: bool, progress: bool) -> dict:
    key = {"protocol": PROTOCOL, **_subject(run, label, prompts, decoding), "training_text": run.text_fingerprint}
    for record in read_section(run.folder, "stories"):
        if matches(record, key | {"text_at_hand": True}):
            return record  # the text need not be here for that
    source = _training_text(run)

    def compute() -> dict:
        started = time.perf_counter()
        stories = completions_of(run.folder, prompts, decoding, progress=progress)
        model, tok, _ = load_model(run.folder)
        found = evaluate_stories(
            model, tok, prompts, decoding=decoding, stories=stories,
            training_text=source.documents("train") if source else None,
            real=list(islice(source.documents("valid"), len(prompts) * decoding.completions)) if source else None,
        )  # fmt: skip
        written = found.pop("stories")
        step = max(1, len(prompts) // 3)
        shown_stories = [story for story in written if story["number"] == 0][::step][:3]
        facts = {"model": run.family, "tokenizer": run.tokenizer, "trained_on": run.text}
        return {**facts, **found, "samples": shown_stories, "seconds": round(time.perf_counter() - started, 1)}

    return kept(run.folder, "stories", key | {"text_at_hand": source is not None}, compute, save=save)


def _training_text(run: Run) -> Source | None:
    """The very text that a run was trained on, or None, with a warning that says why it is not at hand."""
    try:
        source = training_source(run.folder)
        if source.fingerprint == run.text_fingerprint:
            return source
        reason = f"{source.name} is not the text that it was" if run.text_fingerprint else "run.json does not say which"
    except (OSError, ValueError, KeyError) as error:
        reason = str(error)
    note = f"{run.name}: its training text is not at hand, so neither overlaps nor a reference are known: {reason}"
    warnings.warn(note, stacklevel=2)
    return None


def completions_of(
    name: str | Path, prompts: Sequence[str], decoding: Decoding | None = None, *, progress: bool = False
) -> list[dict]:
    """All completions of a saved model, as `write_stories` yields them: from the cache, or written and put there.

    An interrupted call is continued by the next one. The file, one JSON object a line, lies in the folder "stories" of
    the project's cache (lab/data.py).
    Raises: TypeError if `prompts` is a single str; ValueError for a file that holds something else.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts={prompts!r} is a single str; give a list, such as read_prompts(...)[1]")
    decoding, run = decoding or Decoding(), read_run(name)
    subject = _subject(run, "", list(prompts), decoding) | {"protocol": PROTOCOL}
    digest = hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "stories" / f"{run.name}-{digest}.jsonl"
    records = read_journal(path)
    for story in records:
        if (
            set(story) != {"prompt", "number", "text", "ended"}
            or story["prompt"] not in range(len(prompts))
            or story["number"] not in range(decoding.completions)
        ):
            raise ValueError(f"{shown(path)} holds {reprlib.repr(story)}, which is no completion: delete the file")
    stories = {(story["prompt"], story["number"]): story for story in records}  # two calls at once write some twice
    if len(stories) < len(prompts) * decoding.completions:
        model, tok, _ = load_model(name)
        for story in write_stories(model, tok, prompts, decoding, have=tuple(records), progress=progress):
            add_to_journal(path, story)
            stories[story["prompt"], story["number"]] = story
    return [stories[key] for key in sorted(stories)]


def _subject(run: Run, label: str, prompts: list[str], decoding: Decoding) -> dict:
    """What a model's completions depend on, beside the code."""
    fingerprint = documents_fingerprint(prompts)
    settings = asdict(decoding)
    return {"weights": weights_of(run.folder), "name": label, "fingerprint": fingerprint, "decoding": settings}
