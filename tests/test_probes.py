"""The capability card: tasks that can be answered and not guessed, runs that are what they say, a card that is kept."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from benchmarks import probes as benchmark
from config import PRESETS, ModelConfig
from lab.probes import Card, Settings, cache, plot_cards, probe, probing
from lab.probes.__main__ import main
from lab.probes.summary import summarise
from lab.probes.tasks import (
    ALL_FACTS,
    ASK,
    IGNORE,
    SWAPS,
    TASKS,
    chance,
    draw_rows,
    fingerprint,
    is_held_out,
    solve_fuzzy,
    solve_recall,
)  # fmt: skip
from lab.probes.training import Job, accuracy, answer_loss, model_for, run_job, small_copy
from lab.saving import save_model
from model import GPT, LAYERS, layer
from tokenizer import ByteTokenizer
from tools import LoggingModule

ATTENTION = "Norm->Attn->+->Norm->MLP->+"
TINY = Settings(seconds=0.05, seeds=2, rates=(0.5, 1.5))
LEVELS = [(name, level) for name, task in TASKS.items() for level in (*task.levels, *task.more)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SANDBOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "probes"


# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("name, level", LEVELS)
def test_every_answer_follows_from_what_stands_before_it(name, level):
    task = TASKS[name]
    for held_out in (False, True):
        x, y = draw_rows(task, level, 64, seed=3, held_out=held_out)
        assert x.shape == y.shape and x.dtype == y.dtype == np.int64 and x.shape[1] == task.length(level)
        assert x.min() >= 0 and max(x.max(), y.max()) < task.vocab(level)
        assert (y != IGNORE).any()
        for row, answers in zip(x.tolist(), y.tolist()):
            for t, answer in enumerate(answers):
                if answer != IGNORE:
                    before = row if task.whole else row[: t + 1]
                    assert task.solve(before, t) == answer


@pytest.mark.parametrize("name, level", LEVELS)
def test_no_rule_that_ignores_the_task_comes_near_the_answers(name, level):
    x, y = draw_rows(TASKS[name], level, 256, seed=4, held_out=True)
    assert chance(TASKS[name], x, y) < 0.62


@pytest.mark.parametrize("name", TASKS)
def test_guesses_get_worse_as_a_task_gets_harder_unless_noise_makes_it_so(name):
    task = TASKS[name]
    easy, hard = (chance(task, *draw_rows(task, level, 256, 5)) for level in (task.levels[0], task.levels[-1]))
    assert hard < easy + 0.02 or name == "noisy"  # more noise, fewer keys that were seen


def test_chance_is_what_a_rule_gets_by_hand():
    task = TASKS["recall"]
    x = np.array([[0, 32, 1, 33, 0, 32, 1, 33]])
    y = np.array([[IGNORE, IGNORE, IGNORE, IGNORE, 32, IGNORE, 33, IGNORE]])
    assert chance(task, x, y) == 0.5  # either value, or one of the two at random; the commoner one is wrong, then


def test_values_of_memorisation_never_stand_in_a_row_and_training_rows_show_all_of_them():
    task = TASKS["memorisation"]
    learned = {}
    for level in task.levels:
        x, y = draw_rows(task, level, 600, seed=0)
        assert not set(x.ravel()) & set(ALL_FACTS.values())
        assert (x[y != IGNORE] == ASK).all()
        learned |= {key: answer for row, ys in zip(x, y) for key, answer in zip(row[::2], ys[1::2])}
    assert learned == {key: ALL_FACTS[key] for key in learned} and len(learned) == sum(task.levels)
    assert len(set(ALL_FACTS.values())) == len(ALL_FACTS)


def test_solvers_by_hand():
    assert solve_recall([3, 40, 5, 41, 3], 4) == 40
    assert solve_fuzzy([1, 9, 10, 1, 2, 11, 1], 6) == 9  # key (1): (9, 10); key (1, 2): (11)
    assert solve_fuzzy([1, 9, 10, 1, 2, 11, 1, 9], 7) == 10
    assert solve_fuzzy([1, 9, 10, 1, 2, 11, 1, 2], 7) == 11
    assert TASKS["copying"].solve([14, 3, 14, 5, 15, 14, 14], 6) == 5
    assert TASKS["parity"].solve([1, 0, 1, 1], 3) == 1
    swap = {pair: token for token, pair in enumerate(SWAPS, start=5)}
    assert TASKS["cups"].solve([swap[1, 2], swap[0, 3], swap[1, 3], swap[0, 4]], 3) == 1  # 0, 3, 1, 1
    assert TASKS["induction"].solve([4, 7, 9, 4], 3) == 7


FINGERPRINTS = {  # where one changes, PROTOCOL has to rise, or kept cards would pass for cards of the new rows
    "recall": "9300bfaee7f67be1", "fuzzy": "d10d6cf2b8c94507", "noisy": "153218b47f9959a0",
    "copying": "b7fc75a35add9fd1", "compression": "b7621ae810785239",
    "memorisation": "e2e9d3534d25c3c2", "induction": "f56242dbb914ca7e",
    "parity": "9168983ed9dfa2d4", "cups": "e000baacec0203f9",
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_bytes_everywhere(name):
    task = TASKS[name]
    a, b, other = (draw_rows(task, task.levels[0], 40, seed)[0] for seed in (1, 1, 2))
    assert (a == b).all() and not (a == other).all()
    assert fingerprint(task) == FINGERPRINTS[name]


@given(st.integers(0, 2**32 - 1), st.sampled_from(LEVELS), st.integers(1, 40))
def test_rows_for_evaluation_are_never_among_those_for_training(seed, which, count):
    name, level = which
    training_rows, evaluation_rows = (
        draw_rows(TASKS[name], level, count, seed, held_out=held_out)[0] for held_out in (False, True)
    )
    assert len(training_rows) == len(evaluation_rows) == count
    assert not is_held_out(training_rows).any() and is_held_out(evaluation_rows).all()


def test_one_row_in_sixteen_is_held_out_whatever_it_says():
    bits = np.array([[int(bit) for bit in f"{i:012b}"] for i in range(4096)])
    held = is_held_out(bits)
    assert 0.04 < held.mean() < 0.09
    assert abs((bits.sum(1) % 2)[held].mean() - 0.5) < 0.1  # the hash does not give parity away


def test_parity_is_asked_everywhere_in_training_and_in_the_second_half_when_tested():
    (_, trained), (_, tested) = (draw_rows(TASKS["parity"], 16, 8, 0, held_out=held) for held in (False, True))
    assert (trained != IGNORE).all()
    assert (tested[:, :8] == IGNORE).all() and (tested[:, 8:] != IGNORE).all()


# ---------------------------------------------------------------- one run


def test_small_copy_keeps_the_architecture_and_its_proportions():
    big = PRESETS["0.5m"].replace(positions="alibi", post_norm=False)
    small = small_copy(big)
    assert (small.dim, small.num_layers, small.num_q_heads, small.num_kv_heads) == (64, 2, 4, 1)
    assert small.mlp_hidden == int(64 * big.mlp_hidden / big.dim) and small.embed_dim is None
    assert (small.recipe, small.positions, small.qk_norm) == (big.recipe, "alibi", True)
    assert small_copy(ModelConfig(rope_dim=8, num_q_heads=4)).rope_dim == 8
    assert small_copy(ATTENTION) == small_copy("Norm -> Attn -> + -> Norm -> MLP -> +")


@pytest.mark.parametrize("name", TASKS)
def test_a_run_says_what_it_did(name):
    task = TASKS[name]
    tested = task.levels + ((2 * task.levels[-1],) if task.beyond else ())
    run = run_job(Job(small_copy(ATTENTION).to_dict(), name, task.levels, tested, 1.0, 0, 0.05))
    assert run["steps"] >= 1 and run["cpu_seconds"] >= 0.05
    assert list(run["accuracy"]) == [str(level) for level in tested]
    assert all(0 <= share <= 1 for share in run["accuracy"].values())
    assert run["seconds_to_99"] is None and run["diverged"] is None
    assert json.loads(json.dumps(run)) == run


def test_only_answers_count_in_loss_and_accuracy():
    cfg = small_copy(ATTENTION)
    model = model_for(cfg, TASKS["recall"], (4,))
    x, y = map(torch.from_numpy, draw_rows(TASKS["recall"], 4, 8, 0))
    assert answer_loss(model, x, y).item() == pytest.approx(math.log(64), rel=0.02)
    logits = model(x)
    asked = y != IGNORE
    by_hand = -logits.log_softmax(-1)[asked].gather(-1, y[asked][:, None]).mean()
    assert answer_loss(model, x, y).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert accuracy(model, x, y) == pytest.approx((logits.argmax(-1) == y)[asked].float().mean().item())


def test_answers_of_compression_come_from_the_last_position_alone():
    model = model_for(small_copy(ATTENTION), TASKS["compression"], (4,))
    codes = []
    model.decoder.register_forward_pre_hook(lambda module, inputs: codes.append(inputs[0]))
    model(torch.tensor([[1, 2, 3, 4, 15]]))
    assert (codes[0] - model.places.weight[:5]).diff(dim=1).abs().max() < 1e-6


def test_weights_that_are_not_numbers_are_never_right():
    model = model_for(small_copy(ATTENTION), TASKS["parity"], (8,))
    x, y = map(torch.from_numpy, draw_rows(TASKS["parity"], 8, 8, 0))
    nn.init.constant_(model.embed.weight, math.nan)
    assert accuracy(model, x, y) == 0


@pytest.fixture
def block():
    """Registers a block for one test."""
    names = []

    def register(name, cls):
        names.append(name)
        return layer(name)(cls)

    yield register
    for name in names:
        LAYERS.pop(name, None)


class Exploding(LoggingModule):
    def __init__(self, cfg):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(cfg.dim))

    def forward(self, x, ctx=None):
        return x * self.w + (self.w.abs() > 0).float() * math.inf


def test_a_run_that_diverges_is_reported(block):
    block("Exploding", Exploding)
    found = probe("Norm->Exploding->+", tasks=["parity"], settings=TINY, progress=False)
    assert "4 of 4 runs diverged (rate 0.5, seed 0: loss nan" in str(found)
    assert all(run["steps"] < 5 for run in found.tasks["parity"]["runs"])


class Ahead(LoggingModule):
    def __init__(self, cfg):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(cfg.dim))

    def forward(self, x, ctx=None):
        return x.roll(-1, dims=1) * self.w


def test_what_cannot_do_the_tasks_is_refused_in_one_line(block):
    with pytest.raises(ValueError, match=r"CrossAttn needs ctx\.memory, which the tasks have not"):
        probe("Norm->Attn->+->Norm->CrossAttn->+", progress=False)
    block("Ahead", Ahead)
    with pytest.raises(ValueError, match=r"can't be probed: changing the last tokens .* a block sees ahead"):
        probe("Norm->Ahead->+", progress=False)
    with pytest.raises(ValueError, match="unknown block 'Atn'"):
        probe("Norm->Atn->+", progress=False)
    with pytest.raises(ValueError, match="task 'recal' is unknown; choose from recall"):
        probe(ATTENTION, tasks=["recal"])
    with pytest.raises(ValueError, match=r"tasks=\[\] asks for nothing"):
        probe(ATTENTION, tasks=[])
    with pytest.raises(ValueError, match="rates must be positive"):
        Settings(rates=(0.0,))
    with pytest.raises(FileNotFoundError):
        probe("no_such_model")


# ---------------------------------------------------------------- the card


def runs_of(name="parity", **changes):
    base = {"task": name, "levels": [8, 16], "steps": 9, "cpu_seconds": 1.0, "seconds_to_99": None, "diverged": None}
    plan = [(0.5, 0, 0.6, 0.9), (0.5, 1, 0.8, 0.5), (1.5, 0, 0.75, 0.7), (1.5, 1, 0.75, 0.6)]  # rate, seed, ...
    return [
        base
        | {"rate": rate, "seed": seed, "watched": watched, "accuracy": {"8": own, "16": own / 2, "32": 0.5}}
        | changes
        for rate, seed, watched, own in plan
    ]


def test_the_rate_is_chosen_on_the_watched_rows_and_the_accuracy_is_of_others():
    found = summarise("parity", runs_of())
    assert [level["rate"] for level in found["levels"]] == [1.5] * 3  # 0.75 watched, not the 0.7 of the other
    assert found["levels"][0]["accuracy"] == [0.7, 0.6]
    assert [level["trained"] for level in found["levels"]] == [True, True, False]
    assert found["by_seed"] == [0.525, 0.45] and found["score"] == 0.4875  # without the level beyond training
    assert found["levels"][2]["accuracy"] == [0.5, 0.5]


def test_full_trains_each_level_by_itself():
    jobs = probing.jobs_of(small_copy(ATTENTION), probing.FULL, "parity")
    assert {job.levels for job in jobs} == {(8,), (16,), (32,), (64,)}
    assert {job.tested for job in jobs} == {(8,), (16,), (32,), (64, 128)}
    assert len(jobs) == 4 * 4 * 3
    assert len(probing.jobs_of(small_copy(ATTENTION), Settings(), "recall")) == 4


def test_a_card_is_kept_and_a_torn_file_is_named_and_done_again(own_cache, monkeypatch):
    first = probe(ATTENTION, tasks=["parity", "copying"], settings=TINY, workers=1, progress=False)
    files = sorted(own_cache.iterdir())
    assert [path.name.partition("-")[0] for path in files] == ["copying"] * 4 + ["parity"] * 4
    monkeypatch.setattr(probing, "run_job", lambda job: pytest.fail("trained again"))
    assert probe(ATTENTION, tasks=["parity", "copying"], settings=TINY, workers=1, progress=False) == first
    assert list(probe(ATTENTION, tasks=["parity"], settings=TINY, progress=False).tasks) == ["parity"]
    monkeypatch.undo()
    monkeypatch.setenv("SANDBOX_CACHE", str(own_cache.parent))
    for content in (files[0].read_text()[:99], "", "{}", '{"key": 1, "run": {}}'):
        files[0].write_text(content)
        with pytest.warns(UserWarning, match=r"copying-\w+\.json is damaged .*: this run is done again"):
            again = probe(ATTENTION, tasks=["parity", "copying"], settings=TINY, workers=1, progress=False)
        assert again.tasks["parity"] == first.tasks["parity"]
        json.loads(files[0].read_text())


def test_a_card_with_more_seeds_goes_on_from_a_smaller_one(monkeypatch):
    one = probe(ATTENTION, tasks=["parity"], settings=dataclasses.replace(TINY, seeds=1), workers=1, progress=False)
    trained = []
    monkeypatch.setattr(probing, "run_job", lambda job: trained.append(job) or run_job(job))
    two = probe(ATTENTION, tasks=["parity"], settings=TINY, workers=1, progress=False)
    assert [(job.rate, job.seed) for job in trained] == [(0.5, 1), (1.5, 1)]
    assert [run for run in two.tasks["parity"]["runs"] if run["seed"] == 0] == one.tasks["parity"]["runs"]


def test_a_changed_block_is_trained_again(block, own_cache):
    block("Mine", Ahead)
    one = cache.code_of(small_copy("Norm->Mine->+"))
    block("Mine", Exploding)
    assert cache.code_of(small_copy("Norm->Mine->+")) != one
    assert probing._needs_this_process(small_copy("Norm->Mine->+"))
    assert not probing._needs_this_process(small_copy(ATTENTION))


def _stand_in(*args):
    raise AssertionError("only its source is read")


@pytest.mark.parametrize(
    "where, name, value",
    [
        ("blocks.recurrent", "linear_scan", _stand_in),  # what the block calls
        ("lab.probes.training", "MUON_RATE", 0.03),  # what training depends on, and what that calls
        ("lab.probes.training", "make_optimizers", _stand_in),
        ("lab.muon", "orthogonalise", _stand_in),
    ],
)
def test_code_behind_a_run_is_followed_through_names(where, name, value, monkeypatch):
    before = cache.code_of(small_copy("Norm->RGLRU->+"))
    assert before == cache.code_of(small_copy("Norm->RGLRU->+"))
    monkeypatch.setattr(f"{where}.{name}", value)
    assert cache.code_of(small_copy("Norm->RGLRU->+")) != before


def test_code_behind_a_block_holds_the_class_it_inherits_from(block):
    class Base(LoggingModule):
        def __init__(self, cfg):
            super().__init__()

    found = []
    for base in (Base, Ahead):
        block("Mine", type("Heir", (base,), {"__module__": __name__, "__qualname__": "Exploding"}))
        found.append(cache.code_of(small_copy("Norm->Mine->+")))
    assert None not in found and found[0] != found[1]


@pytest.mark.parametrize("wrong", [{"seconds": math.inf}, {"seconds": math.nan}, {"rates": (0.5, math.inf)}])
def test_amounts_must_be_finite(wrong):
    with pytest.raises(ValueError, match="positive and finite"):
        Settings(**wrong)


def test_a_saved_models_card_is_kept_in_its_folder(tmp_path, monkeypatch):
    """A card of an architecture: other weights don't change it, other settings and tasks do."""
    cfg = ModelConfig(dim=16, num_layers=1, vocab_size=ByteTokenizer().vocab_size, max_seq_len=16, num_kv_heads=4)
    folder = save_model(GPT(cfg), ByteTokenizer(), tmp_path / "mine")
    options = dict(tasks=["parity"], settings=TINY, workers=1, progress=False)
    assert not (folder / "evaluation.json").exists()
    probe(folder, save=False, **options)
    assert not (folder / "evaluation.json").exists()
    first = probe(folder, **options)
    assert first.name == "mine" and first.architecture == ATTENTION
    monkeypatch.setattr(probing, "_measure", lambda *_: pytest.fail("measured again"))
    assert probe(folder, **options) == first
    assert len(json.loads((folder / "evaluation.json").read_text())["probes"]) == 1
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        probe(folder, **options | {"tasks": ["copying"]})
    monkeypatch.undo()
    probe(folder, **options | {"fresh": True})
    assert len(json.loads((folder / "evaluation.json").read_text())["probes"]) == 1
    (folder / "evaluation.json").write_text('{"probes": [')
    with pytest.raises(ValueError, match=r"evaluation\.json is torn"):
        probe(folder, **options)


def test_two_processes_give_the_card_that_one_gives(own_cache):
    quick = dataclasses.replace(TINY, seconds=0.01, seeds=1)  # a step each, so that the clock decides nothing
    one, two = (
        probe(ATTENTION, tasks=["parity"], settings=quick, workers=w, fresh=True, progress=False) for w in (1, 2)
    )
    assert [run["accuracy"] for run in one.tasks["parity"]["runs"]] == [
        r["accuracy"] for r in two.tasks["parity"]["runs"]
    ]


def example(label="parity", **changes):
    tasks = {"parity": summarise("parity", runs_of(**changes))}
    return Card(label, label, {}, Settings().to_dict(), 70_000, 1_234, tasks)


def test_the_card_is_shown_as_text_table_and_picture():
    one = example("Norm-><b>->+")
    text = str(one)
    assert "70,000 parameters" in text and "1,234 numbers" in text
    line = next(line for line in text.splitlines() if line.startswith("parity"))
    assert "48.8" in line and "45.0–52.5" in line and "never" in line and "8: 65, 16: 32, 32*: 50" in line
    assert "&lt;b&gt;" in one._repr_html_() and "<b>" not in one._repr_html_()
    frame = one.df()
    assert list(frame["level"]) == [8, 16, 32] and frame["accuracy"][0] == pytest.approx(0.65)
    assert Card.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    other = dataclasses.replace(one, config={"attn_block": "ValueResidualAttn", "mlp_block": "MLP"})
    assert str(other).splitlines()[0] == "Capability card: Norm-><b>->+ with Attn = ValueResidualAttn"
    with pytest.raises(ValueError, match="lacks tasks"):
        Card.from_dict({k: v for k, v in one.to_dict().items() if k != "tasks"})
    figure = plot_cards({"a": one, "b": example(seconds_to_99=3.0)})
    assert figure.axes[0].get_title(loc="left") == "parity"
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "guessing"
    texts = [text.get_text() for text in plot_cards([one, one]).legends[0].get_texts()]
    assert texts[1].startswith("Norm-><b>->+ (2)")
    with pytest.raises(ValueError, match="no card"):
        plot_cards([])


def test_time_to_99_names_how_many_seeds_got_there():
    runs = runs_of(seconds_to_99=4.0)
    runs[2]["seconds_to_99"] = None
    found = summarise("parity", runs)
    assert "4.0 s (1 of 2)" in str(Card("x", "x", {}, Settings().to_dict(), 1, 1, {"parity": found}))


def test_terminal(capsys, tmp_path):
    small = ["--tasks", "parity", "--seconds", "0.01", "--seeds", "1", "--workers", "1"]
    main([ATTENTION, *small, "--picture", str(tmp_path / "cards.png")])
    assert "Capability card: " + ATTENTION in capsys.readouterr().out
    assert (tmp_path / "cards.png").stat().st_size > 5_000
    with pytest.raises(SystemExit, match=r"error: .*unknown block 'Atn'"):
        main(["Norm->Atn->+"])
    with pytest.raises(SystemExit, match=r"seconds=0.0, .* must be positive"):
        main([ATTENTION, "--seconds", "0"])


# ---------------------------------------------------------------- theory


@pytest.mark.slow
def test_attention_looks_things_up_and_a_window_of_two_does_not():
    """What two layers can do by theory: attention finds a key anywhere, one that sees two tokens does not."""
    scores = {}
    for mixer in ("Attn", "Attn(window=2)"):
        cfg = small_copy(f"Norm->{mixer}->+->Norm->MLP->+")
        run = run_job(Job(cfg.to_dict(), "recall", (2, 4, 8), (8,), 0.3, 0, 8.0))
        scores[mixer] = run["accuracy"]["8"]
    assert scores["Attn"] > 0.95
    assert scores["Attn(window=2)"] < 0.5


# ---------------------------------------------------------------- calibration


def test_rank_correlation_by_hand():
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert benchmark.spearman(a, a**3) == pytest.approx(1)
    assert benchmark.spearman(a, -a) == pytest.approx(-1)
    assert benchmark.spearman(a, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert list(benchmark.ranks(np.array([5.0, 1.0, 5.0]))) == [2.5, 1, 2.5]
    assert benchmark.spearman(a, np.ones(4)) == 0


def test_interval_of_the_correlation_holds_it_and_shrinks_with_more_recipes():
    rng = np.random.default_rng(0)
    few, many = (rng.normal(size=(2, n)) + rng.normal(size=n) for n in (12, 200))
    widths = []
    for a, b in (few, many):
        value, low, high = benchmark.correlation(a, b, resamples=300)
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_luck_lays_one_seed_beside_the_other():
    settings = benchmark.text_settings(600)
    values = {"attention": (1.0, 1.1), "MLA": (2.0, 2.5), "conv": (3.0, 3.0), "Mamba": (9.0, None)}
    rows = [
        dict(recipe=name, settings=settings, seed=str(seed), measure="bits per byte", value=str(value))
        for name, own in values.items()
        for seed, value in enumerate(own)
        if value is not None
    ]
    text = benchmark.luck(rows, list(values), 600)
    assert "of 3 recipes: rank correlation 1.00" in text and "0.1000 bits per byte apart (median)" in text
    assert "at most 0.5000 (MLA)" in text
    assert benchmark.luck(rows, ["MLA", "Mamba"], 600) == "Text: one run of each recipe."


def test_calibrated_recipes_are_of_equal_size():
    assert len(benchmark.RECIPES) >= 24
    wanted = benchmark.parameters(benchmark.BASE)
    for name in ("one kv head", "MLP only", "Mamba-2", "experts", "RG-LRU, attention"):
        assert abs(benchmark.parameters(benchmark.fitted(name)) / wanted - 1) < 0.03


def test_scores_join_cards_and_text_of_the_same_settings(tmp_path):
    settings, rows = Settings(), []
    for i, name in enumerate(("attention", "Mamba", "CEMA", "window 8")):
        for seed in (0, 1):
            own = [(benchmark.card_settings(settings), task, 0.1 * i + 0.02 * seed) for task in TASKS]
            own.append((benchmark.text_settings(600), "bits per byte", 1.5 - 0.1 * i))
            own.append((benchmark.text_settings(5), "bits per byte", 9.0))  # of another run: not mixed in
            rows += [dict(recipe=name, settings=s, measure=m, value=str(v), seed=str(seed)) for s, m, v in own]
    rows.append(dict(recipe="MLA", settings=benchmark.text_settings(600), measure="bits per byte", value="1", seed="0"))
    found = benchmark.scores(rows, 600, settings)
    assert list(found) == ["attention", "Mamba", "CEMA", "window 8"]
    assert found["Mamba"]["card"] == pytest.approx(0.11) and found["Mamba"]["bits per byte"] == pytest.approx(1.4)
    rho = benchmark.correlations(found)
    assert rho["card"][0] == rho["parity"][0] == pytest.approx(1)
    assert benchmark.table(found).splitlines()[2].startswith("| window 8")
    benchmark.picture(found, rho, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
