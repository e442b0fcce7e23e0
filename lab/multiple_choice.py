"""Multiple-choice questions for language models: ARC, PIQA, OpenBookQA, HellaSwag and WinoGrande, as published.

    result = multiple_choice(model, tok, "ARC-Easy-Test.jsonl")
    result["sum"]["accuracy"], result["per_byte"]["interval"], result["chance"]

A question is put as a prompt; each choice continues it, and the likeliest one is the model's answer. "Likeliest" by
three measures: the sum of the choice's ln p, that divided by its tokens, and that divided by its UTF-8 bytes. The sum
prefers short choices. Per byte is the fairest to compare between tokenizers.

Prompt and choice are tokenized together, as text is in training, so a token may straddle the seam. What is scored
therefore begins at the first token in which the prompt alone and the prompt with any of its choices differ: all choices
of a question are scored from the same place on, behind the same tokens, and their sums differ as the likelihoods of
prompt and choice together do.
"""

import re
import reprlib
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lab.files import shown
from lab.intervals import summary
from lab.kept import check_names, kept, kept_sets, weights_of
from lab.likelihood import share_of_best, token_log_likelihoods
from lab.records import checked_text, field_names, json_records, lines, spread, text_field
from lab.saving import load_model, model_folder

PROTOCOL = "multiple choice 1"  # rises whenever the same model and file would get another figure
MEASURES = ("sum", "per_token", "per_byte")


@dataclass(frozen=True)
class Question:
    """One question. Prompts are the same for all choices, but for WinoGrande, where the choice stands in the prompt."""

    prompts: tuple[str, ...]  # one for each choice
    choices: tuple[str, ...]  # what is scored behind it, with the space between them
    answer: int  # which choice is right, from 0


def multiple_choice(
    model: nn.Module,
    tok,
    path: str | Path,
    *,
    labels: str | Path | None = None,
    max_questions: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> dict:
    """Scores `model` on a published file of questions; its fields tell which set it is.

    labels: PIQA's answers, and of no other set; None: the file `<name>-labels.lst` beside it.
    max_questions: that many, evenly spread.
    batch_size: changes time and memory, no figure.
    Returns a dict, ready for JSON:
        sum, per_token, per_byte    for each measure accuracy, its 95 % Wilson interval, count, chance (the mean of 1 /
                                    number of choices) and the interval in which guessing lies; ties count 1/m
        chance, chance_interval, count    the same for all three measures
        fewest_tokens               the accuracy of always taking the choice with the fewest tokens
        unknown_tokens, over_context      tokens for text that the tokenizer lacks; texts that were cut into windows
        format, protocol, name, fingerprint, seconds
    Raises: ValueError for an unknown, torn or empty file, a missing field, an answer out of range, with file and line.
    """
    kind, questions = read_questions(path, labels)
    options = {"batch_size": batch_size, "progress": progress}
    return score_questions(model, tok, Path(path).name, kind, spread(questions, max_questions), **options)


def score_questions(
    model: nn.Module,
    tok,
    name: str,
    kind: str,
    questions: Sequence[Question],
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> dict:
    """What `multiple_choice` returns, for questions that `read_questions` has read."""
    started = time.perf_counter()
    wholes = [prompt + choice for q in questions for prompt, choice in zip(q.prompts, q.choices)]
    ids = tok.encode_batch(wholes, bos=True, eos=False)
    tokens = iter(token_log_likelihoods(model, ids, batch_size=batch_size, progress=progress))
    rows, outcomes, shortest = iter(ids), {measure: [] for measure in MEASURES}, []
    for question in questions:
        own_rows = [next(rows) for _ in question.choices]
        starts = first_scored(tok, question.prompts, own_rows)
        scored = [next(tokens)[start - 1 :] for start in starts]  # element i is about token i + 1
        for measure, scores in measured(question, scored).items():
            outcomes[measure].append(share_of_best(scores, question.answer))
        shortest.append(share_of_best([-len(own) for own in scored], question.answer))
    chances = [1 / len(question.choices) for question in questions]
    results = {measure: summary(own, chances) for measure, own in outcomes.items()}
    return {
        "protocol": PROTOCOL,
        "format": kind,
        "name": name,
        "fingerprint": questions_fingerprint(questions),
        **results,
        **{key: results["sum"][key] for key in ("count", "chance", "chance_interval")},
        "fewest_tokens": sum(shortest) / len(shortest),
        "unknown_tokens": sum(row.count(tok.unk_id) for row in ids),
        "over_context": sum(len(row) - 1 > model.cfg.max_seq_len for row in ids),
        "seconds": round(time.perf_counter() - started, 2),
    }


def questions_fingerprint(questions: Sequence[Question]) -> str:
    """16 hexadecimal digits that stand for these questions."""
    from tokenizer import text_fingerprint

    return text_fingerprint(f"{q.prompts}{q.choices}{q.answer}" for q in questions)[:16]


def first_scored(tok, prompts: tuple[str, ...], rows: list[list[int]]) -> list[int]:
    """For each choice, whose prompt and text have the ids `rows`, the index of its first token that is scored.

    It is where the ids of the prompt alone and of the prompt with any choice part for the first time (and never behind
    a choice's last token, should the tokenizer know none of its characters).
    """
    alone = dict(zip(prompts, tok.encode_batch(prompts, bos=True, eos=False)))
    first = {}
    for prompt, row in zip(prompts, rows):
        parting = min(_shared(alone[prompt], row), len(row) - 1)
        first[prompt] = min(first.get(prompt, parting), parting)
    return [first[prompt] for prompt in prompts]


def _shared(a: list[int], b: list[int]) -> int:
    """How many ids both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def measured(question: Question, scored: list[Tensor]) -> dict[str, list[float]]:
    """Each measure of each choice, from the ln p of its tokens."""
    sums = [own.sum(dtype=torch.float64).item() for own in scored]
    sizes = [len(choice.strip().encode()) for choice in question.choices]
    return {
        "sum": sums,
        "per_token": [total / len(own) for total, own in zip(sums, scored)],
        "per_byte": [total / size for total, size in zip(sums, sizes)],
    }


# ---------------------------------------------------------------- published files


def read_questions(path: str | Path, labels: str | Path | None = None) -> tuple[str, list[Question]]:
    """(name of the format, questions) of a published file. Raises ValueError with file and line."""
    path = Path(path)
    records = [] if path.suffix.lower() == ".tsv" else list(json_records(path))
    kind = _format_of(*records[0]) if records else "OpenBookQA"
    if labels and kind != "PIQA":
        raise ValueError(f"labels={str(labels)!r}: {shown(path)} is of {kind}, and only PIQA's answers stand elsewhere")
    if kind == "OpenBookQA":
        return kind, _openbookqa(path)
    for place, record in records:
        if missing := FORMATS[kind][0] - record.keys():
            raise ValueError(f"{place}: no field {min(missing)!r}, which every record of {kind} has")
    if kind == "PIQA":
        records = _with_labels(path, records, Path(labels) if labels else path.with_name(f"{path.stem}-labels.lst"))
    return kind, [FORMATS[kind][1](record, place) for place, record in records]


def _format_of(place: str, record: dict) -> str:
    """Which set a record is of, by its fields."""
    for kind, (marks, _) in FORMATS.items():
        if marks <= record.keys():
            return kind
    known = "; ".join(f"{kind} has {', '.join(sorted(marks))}" for kind, (marks, _) in FORMATS.items())
    raise ValueError(f"{place}: fields {field_names(record)} are those of no known set: {known}")


def _plain(prompt: str, choices: list[str], answer: int) -> Question:
    """A question whose choices continue one prompt, after a space."""
    return Question((prompt,) * len(choices), tuple(f" {choice.strip()}" for choice in choices), answer)


def _asked(question: str) -> str:
    return f"Question: {question.strip()}\nAnswer:"


def _arc(record: dict, place: str) -> Question:
    """{"question": {"stem", "choices": [{"text", "label"}, ...]}, "answerKey"}; CommonsenseQA is alike."""
    question = record["question"]
    if not isinstance(question, dict) or not isinstance(question.get("choices"), list):
        raise ValueError(f'{place}: question must be an object {{"stem": ..., "choices": [...]}}')
    choices = question["choices"]
    if not all(isinstance(choice, dict) for choice in choices):
        raise ValueError(f'{place}: each of the choices must be an object {{"text": ..., "label": ...}}')
    names = [text_field(choice, "label", place) for choice in choices]
    texts = [text_field(choice, "text", place) for choice in choices]
    stem, answer = text_field(question, "stem", place), text_field(record, "answerKey", place)
    return _plain(_asked(stem), _several(texts, place), _one_of(answer, names, place))


def _piqa(record: dict, place: str) -> Question:
    """{"goal", "sol1", "sol2"}, and a label 0 or 1 on the same line of another file."""
    texts = [text_field(record, name, place) for name in ("sol1", "sol2")]
    goal, label = text_field(record, "goal", place), record["label"]
    return _plain(_asked(goal), texts, _one_of(label, ["0", "1"], record["label_place"]))


def _with_labels(path: Path, records: list[tuple[str, dict]], labels: Path) -> list[tuple[str, dict]]:
    if not labels.is_file():
        raise FileNotFoundError(f"{shown(labels)} is missing: it holds PIQA's answers; pass labels=PATH")
    answers = list(lines(labels))
    if len(answers) != len(records):
        raise ValueError(f"{shown(labels)} holds {len(answers)} labels, but {shown(path)} {len(records)} questions")
    return [
        (place, record | {"label": label.strip(), "label_place": label_place})
        for (place, record), (label_place, label) in zip(records, answers)
    ]


def _hellaswag(record: dict, place: str) -> Question:
    """{"ctx", "endings": [...], "label": 0 to 3}: an ending continues the context. Texts as they are in the file."""
    endings = record["endings"]
    if not isinstance(endings, list):
        raise ValueError(f"{place}: endings must be a list, not a {type(endings).__name__}")
    texts = [checked_text(ending, f"endings[{i}]", place) for i, ending in enumerate(endings)]
    label = record.get("label")
    label = str(label) if isinstance(label, int) and not isinstance(label, bool) else text_field(record, "label", place)
    ctx = text_field(record, "ctx", place).rstrip()
    return _plain(ctx, _several(texts, place), _one_of(label, [str(i) for i in range(len(texts))], place))


def _winogrande(record: dict, place: str) -> Question:
    """{"sentence" with one _, "option1", "option2", "answer": "1" or "2"}.

    Scored is what follows the blank, given the sentence up to there with either option in it, so that how frequent the
    options are does not count (Trinh & Le 2018, arXiv 1806.02847, section 3: partial scoring); where nothing follows,
    the options themselves.
    """
    sentence = text_field(record, "sentence", place)
    if sentence.count("_") != 1:
        raise ValueError(f"{place}: sentence must hold one blank '_', not {sentence.count('_')}")
    options = [text_field(record, name, place) for name in ("option1", "option2")]
    before, _, after = sentence.partition("_")
    answer = _one_of(text_field(record, "answer", place), ["1", "2"], place)
    if not after.strip():
        return _plain(before.rstrip(), options, answer)
    return Question(tuple(before + option for option in options), (after.rstrip(),) * 2, answer)


# Format -> (fields that tell it, how a record becomes a question).
FORMATS: dict[str, tuple[set[str], Callable[[dict, str], Question]]] = {
    "ARC": ({"question", "answerKey"}, _arc),
    "PIQA": ({"goal", "sol1", "sol2"}, _piqa),
    "HellaSwag": ({"ctx", "endings"}, _hellaswag),
    "WinoGrande": ({"sentence", "option1", "option2"}, _winogrande),
}
TSV_COLUMNS = ("ID", "Question Stem", "Choices", "Complete Question", "Answer Key")


def _openbookqa(path: Path) -> list[Question]:
    """A header and five columns parted by tabs; choices as "(A) ... (B) ...". The choice continues the stem."""
    rows = lines(path)
    place, header = next(rows, (shown(path), ""))
    if tuple(header.split("\t")) != TSV_COLUMNS:
        raise ValueError(f"{place}: the first line must be OpenBookQA's, {' | '.join(TSV_COLUMNS)}, parted by tabs")
    questions = [_openbookqa_row(line.split("\t"), place) for place, line in rows]
    if not questions:
        raise ValueError(f"{shown(path)} holds no question")
    return questions


def _openbookqa_row(cells: list[str], place: str) -> Question:
    if len(cells) != len(TSV_COLUMNS):
        raise ValueError(f"{place}: {len(cells)} columns parted by tabs; there must be {len(TSV_COLUMNS)}")
    _, stem, choices, _, answer = cells
    parts = re.split(r"\s*\(([A-Z])\)\s*", choices)  # "", "A", text, "B", text, ...
    names, texts = parts[1::2], [checked_text(text, "a choice", place) for text in parts[2::2]]
    if parts[0] or names != list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")[: len(names)]:
        raise ValueError(f"{place}: choices must be written (A) ... (B) ..., not {choices[:60]!r}")
    stem = checked_text(stem, "Question Stem", place).rstrip()
    return _plain(stem, _several(texts, place), _one_of(answer.strip(), names, place))


def _several(texts: list[str], place: str) -> list[str]:
    if len(texts) < 2:
        raise ValueError(f"{place}: {len(texts)} choices; there must be at least 2")
    return texts


def _one_of(label: str, names: list[str], place: str) -> int:
    """The position of the right answer among the choices' labels."""
    if names.count(label) != 1:
        choices = textwrap.shorten(", ".join(names), 100)
        raise ValueError(f"{place}: the answer {reprlib.repr(label)} is out of range; the choices are {choices}")
    return names.index(label)


# ---------------------------------------------------------------- saved models


def multiple_choice_of(
    names: Sequence[str | Path],
    paths: str | Path | Sequence[str | Path] = "auto",
    *,
    max_questions: int | None = None,
    save: bool = False,
    progress: bool = False,
) -> dict[str, list[dict]]:
    """Results of saved models: {model: [what `multiple_choice` returns for each file]}, as `table` takes it.

    What is kept in the models' folders is not computed again.
    paths: a file or several (PIQA's labels beside it); "auto": the sets for which all of these models keep a result,
    which need not be here. Sets that only some have, and results for other weights, are named in a warning.
    save: keep new results in evaluation.json.
    Raises: as `multiple_choice`; ValueError for two folders of one name.
    """
    check_names(names)
    if paths == "auto":
        return _all_have(names, kept_sets(names, "multiple_choice", PROTOCOL))
    results = {model_folder(model).name: [] for model in names}
    for path in [paths] if isinstance(paths, str | Path) else paths:
        kind, questions = read_questions(path)
        questions = spread(questions, max_questions)
        key = {"protocol": PROTOCOL, "fingerprint": questions_fingerprint(questions)}
        for model in names:

            def compute(model=model, path=path, kind=kind, questions=questions) -> dict:
                return score_questions(*load_model(model)[:2], Path(path).name, kind, questions, progress=progress)

            own = key | {"weights": weights_of(model)}
            results[model_folder(model).name].append(kept(model, "multiple_choice", own, compute, save=save))
    return results


def _all_have(names: Sequence[str | Path], sets: dict[str, dict[str, dict]]) -> dict[str, list[dict]]:
    models = [model_folder(model).name for model in names]
    for name, results in sets.items():
        if without := [model for model in models if model not in results]:
            warnings.warn(f"{name} is left out: {', '.join(without)} has no result for it", stacklevel=3)
    return {m: [results[m] for results in sets.values() if len(results) == len(models)] for m in models}


# ---------------------------------------------------------------- to look at


def table(results: dict[str, list[dict]]) -> str:
    """A table in Markdown: a line for each set and model, the three measures in percent with their 95 % intervals.

    results: model's name -> what `multiple_choice` returned, one dict for each set. ~ marks what guessing would reach.
    """
    from lab.evaluation import markdown
    from lab.minimal_pairs import percent

    return markdown([
        {
            "set": f"{result['format']} ({result['name']})",
            "model": name,
            "questions": f"{result['count']:,}",
            "chance": f"{result['chance']:.1%}".replace("%", ""),
            **{measure.replace("_", " "): percent(result[measure]) for measure in MEASURES},
        }
        for name, own in results.items()
        for result in own
    ])  # fmt: skip
