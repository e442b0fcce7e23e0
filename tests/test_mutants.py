"""The tracer's error cards on 200 wrong modules, and the machinery that makes and judges these.

The bars are those of the unseen half: nobody looked at its mutants while the hints were written. Failures therefore say
figures, never which mutant; `python benchmarks/mutants.py --half seen --show` shows those of the other half.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mutants import score as scoring
from mutants import seen, unseen
from mutants.inputs import CFG, OTHER, STANDARD
from mutants.mutate import HALVES, OPERATORS, Mutant, candidates, error_of, sample, source_of
from mutants.score import Score, explain, score, summary, wilson

from tools import trace

BARS = {"named": 0.90, "mends": 0.70}
PARTS = 5  # of the unseen half, so that several workers can share it
RIGHT = [*seen.MODULES.items(), *unseen.MODULES.items()]


# ------------------------------------------------------------------------------------------------- right modules


@pytest.mark.parametrize(("cls", "make_inputs"), RIGHT, ids=lambda value: value.__name__)
def test_right_modules_run_and_trace_without_a_lint(cls, make_inputs):
    module = cls(CFG)
    with trace(module, names=CFG) as tr:
        module(*make_inputs(CFG, *STANDARD, torch.Generator()))
    assert not tr.lints
    module(*make_inputs(CFG, *OTHER, torch.Generator()))


def test_halves_hold_different_modules():
    names = [{cls.__name__ for cls in half.MODULES} for half in (seen, unseen)]
    lines = [{line.strip() for line in source_of(half).splitlines() if "=" in line} for half in HALVES]
    assert not names[0] & names[1]
    assert len(lines[0] & lines[1]) < 0.1 * len(lines[0])


# --------------------------------------------------------------------------------------------------------- mutants


@pytest.mark.parametrize("half", HALVES)
def test_sample_is_100_different_mutants_that_raise(half, tmp_path):
    mutants, right = sample(half), source_of(half).splitlines()
    assert len(mutants) == len({m.source for m in mutants}) == 100
    for mutant in mutants:
        changed = [i for i, pair in enumerate(zip(right, mutant.source.splitlines()), 1) if pair[0] != pair[1]]
        assert changed == [mutant.line]
        assert error_of(mutant, tmp_path / "mutant.py") is not None


@pytest.mark.parametrize("half", HALVES)
def test_sample_is_the_same_every_time_and_balanced(half):
    mutants = sample(half)
    assert sample.__wrapped__(half, 30) == mutants[:30]
    modules = [m.module for m in mutants]
    assert set(modules) == {cls.__name__ for cls in {"seen": seen, "unseen": unseen}[half].MODULES}
    assert max(map(modules.count, modules)) <= 15
    operators = [m.operator for m in mutants]
    assert set(operators) == set(OPERATORS)
    assert max(map(operators.count, operators)) <= 15


CODE = """
class Small(nn.Module):
    def __init__(self, cfg):
        H, K = cfg.num_q_heads, cfg.head_dim
        self.Wq = nn.Linear(cfg.dim, H * K)

    def forward(self, x, mask):
        B, T, _ = x.shape
        q = self.Wq(x).view(B, T, H, K).transpose(1, 2)
        a = q @ q.mT + mask[:T, :T].float()
        return torch.einsum("ts,sd->td", a.mean(-1, keepdim=True), x[:, None, :-1])

MODULES = {Small: make}
"""


@pytest.mark.parametrize(("operator", "line"), [
    ("dims swapped", "q = self.Wq(x).view(B, H, T, K).transpose(1, 2)"),
    ("dims swapped", 'return torch.einsum("ts,sd->td", a.mean(-1, keepdim=True), x[None, :, :-1])'),
    ("call dropped", "q = self.Wq(x).view(B, T, H, K)"),
    ("call dropped", "a = q @ q + mask[:T, :T].float()"),
    ("call dropped", 'return torch.einsum("ts,sd->td", a.mean(-1, keepdim=True), x[:, :-1])'),
    ("dim argument changed", "q = self.Wq(x).view(B, T, H, K).transpose(1, 3)"),
    ("dim argument changed", 'return torch.einsum("ts,sd->td", a.mean(-2, keepdim=True), x[:, None, :-1])'),
    ("size replaced", "self.Wq = nn.Linear(cfg.mlp_hidden, H * K)"),
    ("size replaced", "H, K = cfg.num_kv_heads, cfg.head_dim"),
    ("in and out swapped", "self.Wq = nn.Linear(H * K, cfg.dim)"),
    ("mask mis-sliced", "a = q @ q.mT + mask[:T].float()"),
    ("mask mis-sliced", "a = q @ q.mT + mask[:, :T].float()"),
    ("mask mis-sliced", "a = q @ q.mT + mask.float()"),
    ("mask mis-sliced", "a = q @ q.mT + mask[:T - 1, :T].float()"),
    ("keepdim dropped", 'return torch.einsum("ts,sd->td", a.mean(-1), x[:, None, :-1])'),
    ("operands swapped", "a = q.mT @ q + mask[:T, :T].float()"),
    ("slice off by one", 'return torch.einsum("ts,sd->td", a.mean(-1, keepdim=True), x[:, None, :-2])'),
    ("dtype dropped", "a = q @ q.mT + mask[:T, :T]"),
    ("einsum letter changed", 'return torch.einsum("ts,ds->td", a.mean(-1, keepdim=True), x[:, None, :-1])'),
])  # fmt: skip
def test_operators_make_these_lines(operator, line):
    assert line in {m.wrong.strip() for m in candidates(CODE) if m.operator == operator}


# ----------------------------------------------------------------------------------------------------- the scoring


def stand_in(lines, fix=None, note=None, error=None):
    """A `trace` whose card names `lines`, the first as the failing one, and offers `fix`, from source to source.

    note: attached instead of the card's text; error: raised by the tracer itself at its end.
    """

    class Session:
        card = None

        def __init__(self, module, names):
            pass

        def __enter__(self):
            return self

        def __exit__(self, kind, raised, traceback):
            file = scoring_file(traceback)
            named = [(file, n) for n in lines]
            offered = fix and SimpleNamespace(file=file, line=named[0][1], apply=fix)
            self.card = Card(line=named[0][1], file=file, lines=named, fix=offered)
            raised.add_note(note or str(self.card))
            if error is not None:
                raise error

    return Session


class Card(SimpleNamespace):
    def __str__(self):
        return "✗ a card"


def scoring_file(traceback) -> str:
    files = []
    while traceback is not None:
        files.append(traceback.tb_frame.f_code.co_filename)
        traceback = traceback.tb_next
    return next(file for file in files if file.endswith("module_under_test.py"))


@pytest.fixture
def mutant() -> Mutant:
    return sample("seen")[0]


def judged(monkeypatch, mutant, **traits) -> Score:
    monkeypatch.setattr(scoring, "trace", stand_in(**{"lines": [mutant.line]} | traits))
    return score(mutant, "seen")


def test_a_perfect_card_gets_full_marks(monkeypatch, mutant):
    result = judged(monkeypatch, mutant, fix=lambda source: source_of("seen"))
    assert (result.headline, result.named, result.mends, result.crash) == (True, True, True, "")
    assert result.fix == f"{mutant.line}: {mutant.right.strip()}"


def test_a_card_must_name_the_line_among_few(monkeypatch, mutant):
    few = judged(monkeypatch, mutant, lines=[1, 2, 3, 4, mutant.line])
    assert (few.headline, few.named, few.mends) == (False, True, False)
    assert not judged(monkeypatch, mutant, lines=[1, 2, 3, 4, 5, mutant.line]).named
    assert not judged(monkeypatch, mutant, lines=[mutant.line + 1]).named


@pytest.mark.parametrize("fix", [
    lambda source: source,
    lambda source: "1 / 0",
    lambda source: source_of("seen").replace("self.scale", "2").replace("self.eps", "2").replace("** -0.5", "** 0.5"),
])  # fmt: skip
def test_a_fix_that_does_not_mend_is_told_apart(monkeypatch, fix):
    mutant = next(m for m in sample("seen") if m.module == "GroupedAttention")
    result = judged(monkeypatch, mutant, fix=fix)
    assert not result.mends
    assert not result.crash


@pytest.mark.parametrize("fault", [{"error": KeyError("tracer")}, {"note": "another note"}])
def test_a_tracer_that_crashes_is_counted_and_survived(monkeypatch, mutant, fault):
    result = judged(monkeypatch, mutant, **fault)
    assert result.crash
    assert not (result.headline or result.named or result.mends)


def test_a_fix_that_crashes_leaves_the_other_verdicts(monkeypatch, mutant):
    result = judged(monkeypatch, mutant, fix=lambda source: 1 // 0)
    assert "ZeroDivisionError" in result.crash
    assert result.named
    assert not result.mends
    assert mutant.wrong.strip() in explain(result)


def test_summary_gives_figures_and_no_mutant(mutant):
    text = summary("unseen", [Score(mutant, named=True), Score(mutant, crash="ZeroDivisionError")])
    assert "named       1   50.0%  [9.5%, 90.5%]" in text
    assert "crashed on 1" in text
    assert mutant.module not in text
    assert mutant.wrong.strip() not in text


def test_wilson_interval_of_a_known_case():
    assert wilson(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(0, 100) == pytest.approx((0, 0.0370), abs=1e-4)


# -------------------------------------------------------------------------------------------------------- the bars


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """One folder for all workers of this run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "mutants"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("part", range(PARTS))
def test_cards_on_the_unseen_half_reach_the_bars(part, shared_folder):
    """Each part leaves its counts for the others; the part that finds them complete judges the whole half."""
    scores = [score(mutant, "unseen") for mutant in sample("unseen")[part::PARTS]]
    crashes = sum(bool(s.crash) for s in scores)
    assert crashes == 0, "the tracer, or one of its fixes, raised an error of its own"
    counts = {verdict: sum(getattr(s, verdict) for s in scores) for verdict in BARS} | {"count": len(scores)}
    unfinished = shared_folder / f"{part}.unfinished"
    unfinished.write_text(json.dumps(counts))
    unfinished.rename(shared_folder / f"{part}.json")
    done = [json.loads(path.read_text()) for path in shared_folder.glob("*.json")]
    if len(done) == PARTS:
        total = sum(one["count"] for one in done)
        shares = {verdict: sum(one[verdict] for one in done) / total for verdict in BARS}
        too_low = {verdict: share for verdict, share in shares.items() if share < BARS[verdict]}
        assert total == 100
        assert not too_low, f"{shares} against the bars {BARS}"
