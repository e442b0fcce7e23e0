"""Does a model know which of two sentences is right? BLiMP, storyworld's pairs, or any file of such pairs.

    result = minimal_pairs(model, tok, "BLiMP.zip")        # a zip, a folder, a .jsonl, a list of dicts, "storyworld"
    result["accuracy"], result["interval"]                 # 0.63, [0.626, 0.634]
    print(table({"2m": result}, by="field"))

A pair counts 1 if the model gives its good sentence the higher total likelihood (no division by length), 1/2 if both
are alike, else 0. Somebody who knows nothing has 0.5. Source: Warstadt et al. 2020, arXiv 1912.00582, section 4.1.

A model that has learned nothing prefers the text with fewer tokens. BLiMP does not balance lengths, so its paradigms
give that away: compare with "fewest_tokens", which is what this preference alone would get.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import nn

from lab.intervals import mean_difference, mean_of_groups, summary
from lab.kept import check_names, kept, kept_sets, weights_of
from lab.likelihood import share_of_best, token_log_likelihoods
from lab.records import json_records, spread, text_field
from lab.saving import load_model, model_folder

PROTOCOL = "minimal pairs 2"  # rises whenever the same model and pairs would get another figure
GOOD, BAD = "sentence_good", "sentence_bad"
# Fields by which results are grouped, where records have them: BLiMP's paradigm, phenomenon, field; storyworld's.
GROUPINGS = ("UID", "linguistics_term", "field", "kind", "sentences_back")
STORYWORLD_PAIRS = 700  # 100 of each kind


def minimal_pairs(
    model: nn.Module,
    tok,
    pairs: str | Path | Sequence[dict],
    *,
    max_pairs: int | None = None,
    batch_size: int | None = None,
    keep_outcomes: bool = False,
    progress: bool = False,
) -> dict:
    """Scores `model` on pairs of a good and a bad text.

    pairs: a .jsonl file, a folder or a zip of such files (BLiMP as published), a list of dicts, each with sentence_good
    and sentence_bad; or "storyworld", for pairs made by the simulated world of the built-in stories.
    max_pairs: of a long list that many, evenly spread over it.  batch_size: changes time and memory, no figure.
    Returns a dict, ready for JSON:
        accuracy, interval         over all pairs, with its 95 % Wilson interval
        chance, chance_interval    0.5, and where the accuracy of a coin lies for as many pairs
        mean_of                    for each grouping the mean over its groups; over UID it is BLiMP's published figure
        by                         for each grouping and group the same figures; pairs without that field are left out
        count, ties, identical     pairs; those alike to the model; those alike to the letter
        fewest_tokens              the accuracy of preferring the text with fewer tokens
        unknown_tokens, over_context    tokens for text that the tokenizer lacks; texts that were cut into windows
        protocol, name, fingerprint, seconds    fingerprint: 16 hexadecimal digits for pairs and groups
        outcomes                   with keep_outcomes: 1, 1/2 or 0 for each pair, to compare models pair by pair
    Raises: ValueError for a torn or empty file, a missing or empty field, with file and line.
    """
    options = {"batch_size": batch_size, "keep_outcomes": keep_outcomes, "progress": progress}
    return score_pairs(model, tok, *read_pairs(pairs, max_pairs), **options)


def score_pairs(
    model: nn.Module,
    tok,
    name: str,
    records: Sequence[dict],
    *,
    batch_size: int | None = None,
    keep_outcomes: bool = False,
    progress: bool = False,
) -> dict:
    """What `minimal_pairs` returns, for pairs that `read_pairs` has read."""
    started = time.perf_counter()
    texts = _texts(records)
    ids = tok.encode_batch(texts, bos=True, eos=False)
    scores = [
        own.double().sum().item() for own in token_log_likelihoods(model, ids, batch_size=batch_size, progress=progress)
    ]
    outcomes = [share_of_best(two, 0) for two in zip(scores[::2], scores[1::2])]
    shorter = [share_of_best((-len(good), -len(bad)), 0) for good, bad in zip(ids[::2], ids[1::2])]
    by = {field: groups for field in GROUPINGS if (groups := _by(field, records, outcomes))}
    return {
        "protocol": PROTOCOL,
        "name": name,
        "fingerprint": pairs_fingerprint(records),
        **_summary(outcomes),
        "ties": outcomes.count(0.5),
        "identical": sum(good == bad for good, bad in zip(texts[::2], texts[1::2])),
        "fewest_tokens": sum(shorter) / len(shorter),
        "unknown_tokens": sum(row.count(tok.unk_id) for row in ids),
        "over_context": sum(len(row) - 1 > model.cfg.max_seq_len for row in ids),
        "mean_of": {field: mean_of_groups(list(groups.values())) for field, groups in by.items()},
        "by": by,
        "seconds": round(time.perf_counter() - started, 2),
        **({"outcomes": outcomes} if keep_outcomes else {}),
    }


def read_pairs(pairs: str | Path | Sequence[dict], max_pairs: int | None = None) -> tuple[str, list[dict]]:
    """(name, records) of what `minimal_pairs` takes, each record checked: both texts are there and can be scored."""
    if isinstance(pairs, str) and pairs == "storyworld":
        from lab.storyworld import minimal_pairs as made_pairs

        count = STORYWORLD_PAIRS if max_pairs is None else max_pairs
        name, placed = pairs, _placed(made_pairs(count, seed="evaluation"))
    elif isinstance(pairs, str | Path):
        name, placed = Path(pairs).name, json_records(pairs)
    else:
        name, placed = "list", _placed(pairs)
    records = [_checked(record, place) for place, record in placed]
    if not records:
        raise ValueError("pairs=[] holds no pair, so there is nothing to score")
    return name, spread(records, max_pairs)


def pairs_fingerprint(records: Sequence[dict]) -> str:
    """16 hexadecimal digits that stand for these pairs and the groups that they belong to."""
    from tokenizer import text_fingerprint

    return text_fingerprint(str([record.get(field) for field in (GOOD, BAD, *GROUPINGS)]) for record in records)[:16]


def _texts(records: Sequence[dict]) -> list[str]:
    return [record[side] for record in records for side in (GOOD, BAD)]


def _placed(pairs: Iterable[dict]) -> Iterator[tuple[str, dict]]:
    return ((f"pairs[{i}]", record) for i, record in enumerate(pairs))


def _checked(record: dict, place: str) -> dict:
    """The two texts, and of the other fields those that results can be grouped by."""
    if not isinstance(record, dict):
        raise ValueError(f"{place}: must be a dict with {GOOD!r} and {BAD!r}, not a {type(record).__name__}")
    groups = {field: str(record[field]) for field in GROUPINGS if record.get(field) is not None}
    if "field" in groups:
        groups["field"] = groups["field"].replace("/", "_")  # BLiMP writes both syntax/semantics and syntax_semantics
    return {side: text_field(record, side, place) for side in (GOOD, BAD)} | groups


def _summary(outcomes: list[float]) -> dict:
    return summary(outcomes, [0.5] * len(outcomes))


def _by(field: str, records: list[dict], outcomes: list[float]) -> dict[str, dict]:
    """The summary of each group of one grouping, groups in alphabetical order."""
    groups = defaultdict(list)
    for record, outcome in zip(records, outcomes):
        if field in record:
            groups[record[field]].append(outcome)
    return {name: _summary(groups[name]) for name in sorted(groups)}


# ---------------------------------------------------------------- saved models


def minimal_pairs_of(
    names: Sequence[str | Path],
    pairs: str | Path = "auto",
    *,
    max_pairs: int | None = None,
    save: bool = False,
    progress: bool = False,
) -> dict[str, dict[str, dict]]:
    """Results of saved models: {name of the set: {model: what `minimal_pairs` returns}}, each as `table` takes it.

    What is kept in the models' folders is not computed again.
    pairs: a file, folder, zip or "storyworld", as for `minimal_pairs`; "auto": all sets for which one of these models
    has a result in its evaluation.json, which need not be here. Results for other weights are left out with a warning.
    save: keep new results in evaluation.json.
    Raises: as `minimal_pairs`; ValueError for two folders of one name.
    """
    check_names(names)
    if pairs == "auto":
        return kept_sets(names, "minimal_pairs", PROTOCOL)
    name, records = read_pairs(pairs, max_pairs)
    key = {"protocol": PROTOCOL, "fingerprint": pairs_fingerprint(records)}

    def result(model: str | Path) -> dict:
        def compute() -> dict:
            return score_pairs(*load_model(model)[:2], name, records, progress=progress)

        own = key | {"weights": weights_of(model)}
        return kept(model, "minimal_pairs", own, compute, save=save)

    return {name: {model_folder(model).name: result(model) for model in names}}


# ---------------------------------------------------------------- two models, and tables


def difference(a: dict, b: dict) -> dict:
    """By how much the accuracy of `a` exceeds that of `b`, compared pair by pair, with a 95 % interval.

    Both are results of `minimal_pairs(..., keep_outcomes=True)` for the same pairs, which takes out how hard these are.
    An interval that holds 0 shows no difference.  Raises: ValueError for results of another kind.
    """
    if a["fingerprint"] != b["fingerprint"] or "outcomes" not in a or "outcomes" not in b:
        raise ValueError("a and b must be results for the same pairs, made with keep_outcomes=True")
    return mean_difference(a["outcomes"], b["outcomes"])


def table(results: dict[str, dict], by: str | None = "field") -> str:
    """A table in Markdown: a line for each group, a column for each model, in percent with the 95 % interval.

    results: model's name -> what `minimal_pairs` returned, for the same pairs. An accuracy that guessing would reach as
    well is marked with ~. The last line is for all pairs, where each has its group.  by: None for that line alone.
    Raises: ValueError for different pairs, or a grouping that they do not have.
    """
    from lab.evaluation import markdown

    first = next(iter(results.values()))
    if any(result["fingerprint"] != first["fingerprint"] for result in results.values()):
        raise ValueError("results: they are for different pairs, so they can't stand in one table")
    if by is None:
        by, groups = "pairs of", {}
    elif by in first["by"]:
        groups = first["by"][by]
    else:
        raise ValueError(f"by={by!r} is no grouping of {first['name']}; choose from {', '.join(first['by']) or 'none'}")
    parts = {group: {name: result["by"][by][group] for name, result in results.items()} for group in groups}
    if not groups or sum(group["count"] for group in groups.values()) == first["count"]:
        parts["all pairs"] = results
    return markdown([
        {by: group, "pairs": f"{next(iter(part.values()))['count']:,}", **{n: percent(own) for n, own in part.items()}}
        for group, part in parts.items()
    ])  # fmt: skip


def percent(summary: dict) -> str:
    """An accuracy with its interval, such as `63.1 (62.0 to 64.2)`, in percent; `~` before what guessing reaches."""
    low, high = summary["interval"]
    guessed = summary["accuracy"] <= summary["chance_interval"][1]
    return f"{'~' * guessed}{summary['accuracy']:.1%} ({low:.1%} to {high:.1%})".replace("%", "")
