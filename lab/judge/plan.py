"""What is still to be asked about the stories of saved models, and what that would cost. Nothing is sent."""

import hashlib
import re
import reprlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab import stories
from lab.compare_models import runs_of
from lab.data import cache_folder
from lab.files import shown
from lab.journal import read_journal
from lab.judge.questions import ASKED, PROTOCOL, Call, question
from lab.judge.server import Address, address
from lab.kept import documents_fingerprint, find_records, weights_of
from lab.plots import Run
from lab.stories import Decoding, completions_of, read_prompts

REPLY_TOKENS = 60  # what a reply is expected to take
CHARACTERS_PER_TOKEN = 4  # of English, about: for the estimate
OVERHEAD_TOKENS = 12  # around the messages of a call, about
MOST_REPLIES = 2  # so many replies without a grade settle a question, too


@dataclass
class Plan:
    """What has to be known for a call of `judge`: kept records by run, and the calls behind those that are not kept."""

    runs: list[Run]
    kept: dict[str, dict]
    subjects: dict[str, dict]
    calls: dict[str, list[Call]]
    journal: Path
    answers: dict[str, list[dict]]  # by the key of a call

    def missing(self, where: Address) -> list[Call]:
        """Calls without an answer, each question once."""
        open_calls = {call.key(where): call for calls in self.calls.values() for call in calls}
        return [call for key, call in open_calls.items() if not is_settled(self.answers.get(key, []))]


def estimate(
    names: Sequence[str | Path],
    prompts: str | Path | Sequence[str] = "storyworld",
    *,
    where: Address | None = None,
    decoding: Decoding | None = None,
    completions: int | None = None,
    with_seeds: bool = True,
    price_in: float | None = None,
    price_out: float | None = None,
) -> dict:
    """What `judge` with the same arguments would still ask: nothing is sent.

    price_in, price_out: what a million tokens cost, in any currency, read and written.
    Returns {"calls", "answered", "tokens_in", "tokens_out", "tokens_out_at_most", "cost", "sentence"}. Tokens are
    estimated (about 4 characters each, replies of 60); `cost` is None without both prices. tokens_out_at_most: if each
    reply is as long as the request allows, and each question has to be asked twice; None if the request sets no limit.
    """
    where = where or address() or Address("http://none.invalid", "none")  # without a judge nothing is answered yet
    plan = make_plan(names, prompts, where, decoding, completions, with_seeds)
    return cost_of(plan, where, price_in, price_out)


def cost_of(plan: Plan, where: Address, price_in: float | None, price_out: float | None) -> dict:
    """What `estimate` returns, for a plan."""
    missing = plan.missing(where)
    characters = sum(len(message["content"]) for call in missing for message in call.messages())
    tokens_in = characters // CHARACTERS_PER_TOKEN + OVERHEAD_TOKENS * len(missing)
    tokens_out, longest = REPLY_TOKENS * len(missing), where.max_reply_tokens
    tries_left = sum(MOST_REPLIES - len(plan.answers.get(call.key(where), [])) for call in missing)
    at_most = None if longest is None else longest * tries_left
    priced = price_in is not None and price_out is not None
    cost = (tokens_in * price_in + tokens_out * price_out) / 1e6 if priced else None
    sentence = f"{len(missing):,} calls, about {tokens_in:,} tokens in and {tokens_out:,} out "
    sentence += "(without a limit)" if at_most is None else f"(at most {at_most:,})"
    sentence += f", about {cost:.2f} in the currency of the prices" if priced else ""
    answered = sum(map(len, plan.calls.values())) - len(missing)
    return {
        "calls": len(missing), "answered": answered, "tokens_in": tokens_in, "tokens_out": tokens_out,
        "tokens_out_at_most": at_most, "cost": cost, "sentence": sentence,
    }  # fmt: skip


def make_plan(
    names, prompts, where: Address, decoding: Decoding | None, completions: int | None, with_seeds: bool
) -> Plan:
    """Looks up what is kept and answered. Raises: ValueError for a bad setting, or a journal that holds no replies."""
    decoding = decoding or Decoding()
    completions = decoding.completions if completions is None else completions
    if not 1 <= completions <= decoding.completions:
        raise ValueError(f"completions={completions} must be from 1 to the {decoding.completions} that are written")
    label, texts = read_prompts(prompts)
    runs = runs_of(names, with_seeds)
    subjects = {run.name: _subject(run, where, label, texts, decoding, completions) for run in runs}
    records = {run.name: find_records(run.folder, "judge", subjects[run.name]) for run in runs}
    known = {name: found[0] for name, found in records.items() if found}
    calls = {run.name: _calls(run, texts, decoding, completions) for run in runs if run.name not in known}
    digest = hashlib.sha256(where.model.encode()).hexdigest()[:8]
    slug = re.sub(r"[^\w.-]+", "-", where.model)[:60]
    journal = cache_folder() / "judge" / f"{slug}-{digest}.jsonl"
    answers: dict[str, list[dict]] = {}
    for reply in read_journal(journal) if calls else []:
        if not {"call", "value", "reply"} <= reply.keys():
            raise ValueError(f"{shown(journal)} holds {reprlib.repr(reply)}, which is no reply: take that line out")
        answers.setdefault(reply["call"], []).append(reply)
    return Plan(runs, known, subjects, calls, journal, answers)


def _subject(run: Run, where: Address, label: str, prompts: list[str], decoding: Decoding, completions: int) -> dict:
    """What a model's grades depend on: the key of its record."""
    return {
        "protocol": PROTOCOL, "weights": weights_of(run.folder), "judge": where.model, "options": where.options,
        "name": label, "fingerprint": documents_fingerprint(prompts), "stories": stories.PROTOCOL,
        "decoding": asdict(decoding), "completions": completions,
    }  # fmt: skip


def _calls(run: Run, prompts: list[str], decoding: Decoding, completions: int) -> list[Call]:
    """All that is asked about a model: each criterion of its first `completions` completions of each prompt."""
    return [
        Call(run.name, story["prompt"], criterion, question(criterion, prompts[story["prompt"]], story["text"]))
        for story in completions_of(run.folder, prompts, decoding)
        if story["number"] < completions
        for criterion in ASKED
    ]


def is_settled(tries: list[dict]) -> bool:
    """A question is settled by a grade, or by MOST_REPLIES replies without one."""
    return len(tries) >= MOST_REPLIES or any(reply["value"] is not None for reply in tries)
