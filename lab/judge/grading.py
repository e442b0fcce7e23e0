"""Asking: the judge's grades for the stories of saved models, each reply written down at once."""

import random
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.compare_models import runs_of
from lab.intervals import bootstrap_mean
from lab.journal import add_to_journal
from lab.judge.comparison import differences
from lab.judge.plan import Plan, cost_of, is_settled, make_plan
from lab.judge.questions import AGE, AGE_GROUPS, ASKED, CRITERIA, PROTOCOL, Call, read_reply
from lab.judge.server import HOW, Address, address, ask
from lab.kept import find_records, keep
from lab.stories import Decoding

FEW = 10  # so many replies without a score at the start, and not one with: something is wrong


def judge(
    names: Sequence[str | Path],
    prompts: str | Path | Sequence[str] = "storyworld",
    *,
    where: Address | None = None,
    decoding: Decoding | None = None,
    completions: int | None = None,
    with_seeds: bool = True,
    confirm: bool = False,
    save: bool = False,
    seed: int = 0,
    at_once: int = 4,
    progress: bool = False,
) -> dict:
    """Has the stories of saved models graded. What was answered or kept before is not asked again.

    names, prompts, decoding, with_seeds: as in `stories_of`.  completions: how many of each prompt are graded; None:
    all of them.  where: the judge; None takes `address()`.  confirm: go ahead; without it, an error says what it would
    cost.  save: keep the records in each model's evaluation.json, section "judge".  seed: of the shuffled order.
    at_once: calls that are under way at a time; more are quicker, and sooner too many for the server.
    Returns {"judge", "protocol", "models": run -> record, "differences"}. A record holds:
        scores        for each criterion the mean over prompts with its 95 % interval, prompts drawn anew
        by_prompt     for each criterion the mean of each prompt's completions, None where none was answered
        ages          for each group the share of the stories that it was guessed for
        unanswered, calls    share of questions with two replies but no grade in either; number of questions
    and what it depends on. Raises: ValueError without a judge, without `confirm`, or for what the judge refuses;
    ConnectionError if it can't be reached: what was answered by then is kept, and the next call goes on from there.
    """
    where = where or address()
    if where is None:
        raise ValueError(HOW)
    if at_once < 1:
        raise ValueError(f"at_once={at_once} must be at least 1")
    plan = make_plan(names, prompts, where, decoding, completions, with_seeds)
    missing = plan.missing(where)
    if missing and not confirm:
        sentence = cost_of(plan, where, None, None)["sentence"]
        raise ValueError(f"confirm=False: {where.model} would be asked {sentence}; go ahead with confirm=True")
    random.Random(seed).shuffle(missing)
    _ask_all(missing, where, plan, at_once, progress)
    records = {}
    for run in plan.runs:
        if run.name in plan.kept:
            records[run.name] = plan.kept[run.name]
            continue
        subject = plan.subjects[run.name]
        records[run.name] = subject | {"model": run.family} | _graded(plan.calls[run.name], plan.answers, where)
        if save:
            keep(run.folder, "judge", subject, records[run.name])
    return {"judge": where.model, "protocol": PROTOCOL, "models": records, "differences": differences(records)}


def kept_grades(names: Sequence[str | Path], prompts: str | None = None, *, with_seeds: bool = True) -> dict:
    """What `judge` returns, of the records alone that models' evaluation.json keep for their present weights.

    prompts: the name of the file that they were made with; None: whatever was saved first. "judge" is None where there
    is none, or more than one.
    """
    key = {"protocol": PROTOCOL} | ({} if prompts is None else {"name": prompts})
    found = {run.name: find_records(run.folder, "judge", key) for run in runs_of(names, with_seeds)}
    records = {name: own[0] for name, own in found.items() if own}
    judges = {record["judge"] for record in records.values()}
    name = judges.pop() if len(judges) == 1 else None
    return {"judge": name, "protocol": PROTOCOL, "models": records, "differences": differences(records)}


def _ask_all(calls: list[Call], where: Address, plan: Plan, at_once: int, progress: bool) -> None:
    """Asks each question, once more where the reply holds no grade, and writes down each reply at once."""
    from tqdm import tqdm

    writing = threading.Lock()

    def settle(call: Call) -> None:
        replies = plan.answers.setdefault(call.key(where), [])
        while not is_settled(replies):
            reply, usage = ask(where, call.messages())
            value = read_reply(call.criterion, reply)
            record = {"call": call.key(where), "criterion": call.criterion, "value": value, "reply": reply, **usage}
            with writing:
                add_to_journal(plan.journal, record | {"question": call.question})
            replies.append(record)

    bar = tqdm(total=len(calls), unit=" calls", desc="judging", disable=not progress, leave=False)
    with bar, ThreadPoolExecutor(at_once) as pool:
        for first in range(0, len(calls), at_once):
            batch = calls[first : first + at_once]
            list(pool.map(settle, batch))  # should a call fail, the others of its batch are still written down
            bar.update(len(batch))
            if first < FEW <= first + len(batch):
                _check_first([plan.answers[call.key(where)] for call in calls[: first + len(batch)]], where)


def _check_first(answers: list[list[dict]], where: Address) -> None:
    """Raises ValueError if no reply to these calls holds a grade: all others would be paid in vain."""
    replies = [reply for tries in answers for reply in tries]
    if any(reply["value"] is not None for reply in replies):
        return
    raise ValueError(
        f"none of the first {len(answers)} questions got a grade from {where.model}; its last reply: "
        f"{replies[-1]['reply'][:200]!r}. A model that thinks at length may need "
        "Address(..., options={'max_tokens': 2000})"
    )


def _graded(calls: list[Call], answers: dict[str, list[dict]], where: Address) -> dict:
    """The figures of a record from the answers to a model's calls."""
    given: dict[str, dict[int, list]] = {criterion: {} for criterion in ASKED}
    for call in calls:
        values = [reply["value"] for reply in answers[call.key(where)] if reply["value"] is not None]
        given[call.criterion].setdefault(call.prompt, []).extend(values[:1])
    by_prompt = {
        criterion: [sum(own) / len(own) if own else None for _, own in sorted(given[criterion].items())]
        for criterion in CRITERIA
    }
    ages = Counter(age for own in given[AGE].values() for age in own)
    answered = sum(len(own) for prompts in given.values() for own in prompts.values())
    return {
        "scores": {name: bootstrap_mean([x for x in own if x is not None]) for name, own in by_prompt.items()},
        "by_prompt": {name: [None if x is None else round(x, 4) for x in own] for name, own in by_prompt.items()},
        "ages": {group: ages[group] / max(1, ages.total()) for group in AGE_GROUPS},
        "unanswered": 1 - answered / len(calls),
        "calls": len(calls),
    }
