"""Training: the schedule in closed form, exact resuming, faults that lose nothing."""

import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from config import PRESETS, ModelConfig, TrainConfig
from lab import files, runs
from lab.progress import NotebookProgress, Progress, TerminalProgress, make_progress
from lab.saving import load_model
from model import GPT
from train import Step, lr_at, make_optimizers, make_step, train

ROOT = Path(__file__).resolve().parent.parent
CFG = ModelConfig(dim=16, num_layers=2, vocab_size=260, max_seq_len=32, num_q_heads=2, num_kv_heads=1, dropout_rate=0.1)
TIMED = ("Time Elapsed", "Tokens Per Second")


@pytest.fixture
def text(tmp_path):
    """A file of 120 short documents."""
    dice = random.Random(0)
    words = "the cat dog sat ran on a mat red big and then it was happy".split()
    stories = [" ".join(dice.choices(words, k=40)) + "." for _ in range(120)]
    path = tmp_path / "stories.txt"
    path.write_text("".join(f"{story}\n<|endoftext|>\n" for story in stories), encoding="utf-8")
    return path


@pytest.fixture
def tcfg(text, tmp_path, monkeypatch):
    monkeypatch.setenv("SANDBOX_CACHE", str(tmp_path / "cache"))
    return TrainConfig(
        model_name="run", dataset=str(text), tokenizer="byte", batch_size=2, grad_accum_steps=2, max_iters=12,
        warmup_iters=2, eval_interval=4, eval_documents=2, checkpoint_interval=3, sample_prompt="", num_threads=1,
        device="cpu", precision="fp32", kernel="plain",
    )  # fmt: skip


class StopAt(Progress):
    """Presses Ctrl-C after a given step, as the notebook's stop button does."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def step(self, done, *rest):
        if done == self.at:
            signal.raise_signal(signal.SIGINT)


def log_rows(folder):
    with open(folder / "log_data.csv", newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- schedule


def schedule(**changes):
    tcfg = TrainConfig(max_iters=100, warmup_iters=10, lr_max=1.0, muon_lr=1.0).replace(**changes)
    return [lr_at(step, tcfg) for step in range(tcfg.max_iters)]


def test_schedules_closed_form():
    warm = [(i + 1) / 11 for i in range(10)]
    assert schedule(anneal_type="constant") == warm + [1.0] * 90
    assert schedule(anneal_type="linear") == pytest.approx(warm + [1 - i / 90 for i in range(90)])
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * i / 70)) / 2 for i in range(70)]
    assert schedule(anneal_type="cosine", lr_min=0.1, final_flat_iters=20) == pytest.approx(warm + cosine + [0.1] * 20)
    stable = [1.0] * 72 + [1 - i / 18 for i in range(18)]
    assert schedule(anneal_type="wsd", wsd_decay_fraction=0.2) == pytest.approx(warm + stable)


def test_warm_restarts_start_from_the_peak_in_cycles_that_grow():
    rates = schedule(anneal_type="cosine", warmup_iters=0, max_iters=70, num_restarts=2, T_mult=2.0)
    peaks = [i for i, rate in enumerate(rates) if rate == pytest.approx(1.0)]
    assert peaks == [0, 10, 30], "cycles of 10, 20 and 40 steps"
    assert rates[9] < 0.05 and rates[29] < 0.01 and rates[69] < 0.01


def test_schedule_settings_are_the_ones_used(tcfg):
    step = make_step(CFG, tcfg.replace(anneal_type="cosine", lr_max=3e-3, muon_lr=0.03, lr_min=1e-3), "cpu")
    x = torch.randint(0, 260, (4, 32))
    for i in range(12):
        step(x, x)
        adam, muon = (optimizer.param_groups[0]["lr"] for optimizer in step.optimizers)
        assert adam == pytest.approx(lr_at(i, step.tcfg)) and muon == pytest.approx(10 * adam)


# ---------------------------------------------------------------- one step


def test_every_parameter_has_one_optimizer_and_only_matrices_decay(tcfg):
    model = GPT(CFG.replace(qk_norm=True, mlp_bias=True, norm_type="LayerNorm", norm_bias=True, tied_head=False))
    for name in ("adamw", "muon"):
        optimizers = make_optimizers(model, tcfg.replace(optimizer=name, weight_decay=0.1))
        held = [p for o in optimizers for g in o.param_groups for p in g["params"]]
        assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
        decays = [p for o in optimizers for g in o.param_groups if g["weight_decay"] for p in g["params"]]
        assert sorted(map(id, decays)) == sorted(id(p) for p in model.parameters() if p.ndim >= 2)
    muon = {id(p) for g in optimizers[1].param_groups for p in g["params"]}
    assert muon == {id(p) for p in model.layers.parameters() if p.ndim == 2}


def test_step_equals_plain_pytorch(tcfg):
    tcfg = tcfg.replace(optimizer="adamw", weight_decay=0.1, grad_clip=0.5, warmup_iters=0, grad_accum_steps=1)
    cfg = CFG.replace(dropout_rate=0.0)
    step = make_step(cfg, tcfg, "cpu")
    torch.manual_seed(tcfg.seed)
    model = GPT(cfg)
    adam = torch.optim.AdamW(make_optimizers(model, tcfg)[0].param_groups, betas=(0.9, 0.95))
    for i in range(3):
        x = torch.randint(0, 260, (4, 32))
        loss = step(x, x)
        adam.zero_grad()
        expected = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())
        expected.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in adam.param_groups:
            group["lr"] = lr_at(i, tcfg)
        adam.step()
        assert loss == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(step.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_accumulated_gradients_equal_those_of_the_whole_batch(tcfg):
    cfg, x = CFG.replace(dropout_rate=0.0), torch.randint(0, 260, (8, 32))
    whole, parts = (make_step(cfg, tcfg.replace(grad_accum_steps=n, batch_size=8 // n), "cpu") for n in (1, 4))
    assert whole.backward(x, x) == pytest.approx(parts.backward(x, x), rel=1e-6)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    with pytest.raises(ValueError, match="grad_accum_steps=4 must divide the 6 rows"):
        parts(x[:6], x[:6])


def test_bf16_is_close_to_fp32(tcfg):
    x = torch.randint(0, 260, (4, 32))
    losses = [make_step(CFG, tcfg.replace(precision=p), "cpu")(x, x) for p in ("fp32", "bf16")]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


# ---------------------------------------------------------------- the loop


def test_a_run_leaves_everything_that_is_needed(tcfg, tmp_path):
    run = train(CFG, tcfg, root=tmp_path / "models", progress=Progress())
    assert run.finished and run.folder == tmp_path / "models" / "run"
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "model_config.json", "train_config.json", "log_data.csv", "model.safetensors", "tokenizer.json", "run.json",
        "loss_curve.png",
    }  # fmt: skip
    rows = log_rows(run.folder)
    assert [row["Step"] for row in rows] == [0, 4, 8, 12]
    assert rows[0]["Validation Loss"] == pytest.approx(math.log(260), rel=0.02)
    assert rows[-1]["Validation Loss"] < rows[0]["Validation Loss"]
    assert all(row["Perplexity"] == pytest.approx(math.exp(row["Validation Loss"])) for row in rows)
    assert rows[-1]["Tokens Seen"] == 12 * 4 * 32
    record = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert record["final"]["bits_per_byte"] == min(row["Bits Per Byte"] for row in rows)
    assert record["parameters"]["total"] == sum(p.numel() for p in run.model.parameters())
    assert record["peak_memory_mb"] > 50
    assert record["text"]["name"] == "stories.txt" and str(tmp_path) not in json.dumps(record)
    model, tok, cfg = load_model(run.folder)
    assert cfg == CFG and same_weights(model, run.model) and tok.fingerprint == run.tok.fingerprint
    assert TrainConfig.from_dict(json.loads((run.folder / "train_config.json").read_text())).lr_max == tcfg.lr_max


def test_a_run_that_stopped_before_its_first_step_goes_on(tcfg, tmp_path):
    class Gone(Progress):
        def evaluation(self, log, sample):
            raise RuntimeError("killed after the first row was written")

    with pytest.raises(RuntimeError, match="killed"):
        train(CFG, tcfg, root=tmp_path, progress=Gone())
    run = train(CFG, tcfg, root=tmp_path, progress=Progress())
    assert run.folder.name == "run" and [row["Step"] for row in log_rows(run.folder)] == [0, 4, 8, 12]


@pytest.mark.parametrize("stop_at", [1, 6, 7, 11])
def test_resuming_is_exact_to_the_bit(tcfg, tmp_path, stop_at):
    whole = train(CFG, tcfg, root=tmp_path / "whole", progress=Progress())
    paused = train(CFG, tcfg, root=tmp_path / "parts", progress=StopAt(stop_at))
    assert not paused.finished and runs.newest_checkpoint(paused.folder).name == f"step-{stop_at:08d}"
    torch.manual_seed(999)  # whatever else happened in between
    resumed = train(CFG, tcfg, root=tmp_path / "parts", progress=Progress())
    assert resumed.finished and resumed.folder == paused.folder
    assert same_weights(whole.model, resumed.model)
    assert log_rows(whole.folder) == log_rows(resumed.folder)
    same = ("text", "steps", "tokens_seen", "best_step", "final")
    assert all(whole.record[key] == resumed.record[key] for key in same)


def test_last_step_of_an_interrupted_run_still_finishes(tcfg, tmp_path):
    assert train(CFG, tcfg, root=tmp_path, progress=StopAt(12)).finished


def test_ctrl_c_leaves_a_readable_log_and_the_old_handler(tcfg, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    paused = train(CFG, tcfg, root=tmp_path, progress=StopAt(5))
    assert signal.getsignal(signal.SIGINT) is before
    assert [row["Step"] for row in log_rows(paused.folder)] == [0, 4]
    assert paused.model(torch.zeros(1, 4, dtype=torch.int64)).shape == (1, 4, 260)


def test_training_in_a_thread_works_without_signals(tcfg, tmp_path):
    result = []
    thread = threading.Thread(target=lambda: result.append(train(CFG, tcfg, root=tmp_path, progress=Progress())))
    thread.start()
    thread.join()
    assert result[0].finished


def test_the_same_name_never_overwrites(tcfg, tmp_path):
    first = train(CFG, tcfg, root=tmp_path, progress=Progress())
    weights = (first.folder / "model.safetensors").read_bytes()
    second = train(CFG, tcfg.replace(seed=2), root=tmp_path, progress=Progress())
    assert second.folder.name == "run-2" and not same_weights(first.model, second.model)
    assert (first.folder / "model.safetensors").read_bytes() == weights
    assert train(CFG, tcfg, root=tmp_path, progress=StopAt(2)).folder.name == "run-3"
    assert train(CFG, tcfg, root=tmp_path, progress=Progress()).folder.name == "run-3"


def test_an_unfinished_run_refuses_other_settings(tcfg, tmp_path):
    train(CFG, tcfg, root=tmp_path, progress=StopAt(2))
    with pytest.raises(ValueError, match=r"unfinished run with other settings \(lr_max 0.006, not 0.1\)"):
        train(CFG, tcfg.replace(lr_max=0.1), root=tmp_path, progress=Progress())
    with pytest.raises(ValueError, match="num_layers 2, not 3"):
        train(CFG.replace(num_layers=3), tcfg, root=tmp_path, progress=Progress())
    assert train(CFG, tcfg.replace(checkpoint_interval=50), root=tmp_path, progress=Progress()).finished


def test_a_resumed_run_keeps_its_machine_settings(tcfg, tmp_path):
    train(CFG, tcfg.replace(precision="bf16"), root=tmp_path, progress=StopAt(2))
    resumed = train(CFG, tcfg.replace(precision="auto", num_threads=0), root=tmp_path, progress=Progress())
    assert resumed.record["machine"]["precision"] == "bf16" and resumed.record["machine"]["threads"] == 1


def test_two_processes_can_not_train_one_model(tcfg, tmp_path):
    train(CFG, tcfg, root=tmp_path, progress=StopAt(2))
    with runs.locked(tmp_path / "run"), pytest.raises(ValueError, match="being trained by another process"):
        train(CFG, tcfg, root=tmp_path, progress=Progress())
    assert train(CFG, tcfg, root=tmp_path, progress=Progress()).finished


def test_init_from_goes_on_with_saved_weights(tcfg, tmp_path):
    first = train(CFG, tcfg, root=tmp_path, progress=Progress())
    again = tcfg.replace(init_from=str(first.folder), model_name="tuned", lr_max=1e-9, muon_lr=1e-9, max_iters=2)
    second = train(CFG, again, root=tmp_path, progress=Progress())
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert second.record["tokens_seen"] == (12 + 2) * 4 * 32
    assert [row["Tokens Seen"] for row in log_rows(second.folder)] == [12 * 128, 14 * 128], "the curve goes on"
    assert second.record["init_from"]["name"] == "run" and second.record["seconds"] > first.record["seconds"]
    with pytest.raises(ValueError, match=r"init_from=.*dim 16, not 32"):
        train(CFG.replace(dim=32), again.replace(model_name="other"), root=tmp_path, progress=Progress())


def test_a_vocabulary_other_than_the_tokenizers_is_refused(tcfg, tmp_path):
    with pytest.raises(ValueError, match="vocab_size=300 differs from the tokenizer's 260"):
        train(CFG.replace(vocab_size=300), tcfg, root=tmp_path, progress=Progress())
    assert not (tmp_path / "run").exists(), "refused before a folder is made"


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tcfg, tmp_path, monkeypatch):
    good = train(CFG, tcfg, root=tmp_path / "good", progress=StopAt(7))
    real, calls = Step.backward, []

    def overflowing(self, x, y):
        calls.append(self.count)
        return math.nan if self.count == 7 and len(calls) > 8 else real(self, x, y)

    monkeypatch.setattr(Step, "backward", overflowing)
    with pytest.raises(FloatingPointError, match=r"loss=nan .* at step 7 \(lr=.*\): .*halve lr_max"):
        train(CFG, tcfg, root=tmp_path / "bad", progress=Progress())
    folders = (good.folder, tmp_path / "bad" / "run")
    kept = [runs.load_checkpoint(runs.newest_checkpoint(folder)) for folder in folders]
    assert kept[0]["step"] == kept[1]["step"] == 7
    assert all(torch.equal(kept[0]["model"][name], kept[1]["model"][name]) for name in kept[0]["model"])
    assert [row["Step"] for row in log_rows(tmp_path / "bad" / "run")] == [0, 4]


def test_the_cause_of_a_broken_step_is_named(tcfg):
    step = make_step(CFG, tcfg, "cpu")
    x = torch.randint(0, 260, (4, 32))
    before = {name: p.clone() for name, p in step.model.state_dict().items()}
    step.model.final_norm.weight.data[0] = math.inf
    with pytest.raises(FloatingPointError, match=r"step 0 .*weights were not finite before this step \(final_norm"):
        step(x, x)
    assert all(torch.equal(p, before[n]) for n, p in step.model.state_dict().items() if n != "final_norm.weight")


# ---------------------------------------------------------------- kills


def forked_training(tcfg, root) -> int:
    """The process id of a child that trains and then leaves at once."""
    child = os.fork()
    if child:
        return child
    try:
        train(CFG, tcfg, root=root, progress=Progress())
    finally:
        os._exit(0)


def steps_kept(folder):
    checkpoint = runs.newest_checkpoint(folder)
    return int(checkpoint.name.removeprefix("step-")) if checkpoint else -1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fifty_kills_at_random_moments_lose_nothing_that_was_kept(tcfg, tmp_path):
    """Each child goes on from the last checkpoint, writes one after every step, and is killed soon after the first."""
    tcfg = tcfg.replace(max_iters=400, eval_interval=20, checkpoint_interval=1)
    expected = train(CFG, tcfg.replace(checkpoint_interval=1000), root=tmp_path / "whole", progress=Progress())
    folder, dice, kept = tmp_path / "killed" / "run", random.Random(1), -1
    for _ in range(50):
        child, deadline = forked_training(tcfg, folder.parent), time.monotonic() + 60
        while steps_kept(folder) <= kept and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert steps_kept(folder) > kept, "every child went on from the last checkpoint"
        kept = steps_kept(folder)
    assert kept < 400, "the last child was killed too"
    resumed = train(CFG, tcfg.replace(checkpoint_interval=1000), root=folder.parent, progress=Progress())
    assert resumed.folder == folder and same_weights(expected.model, resumed.model)
    assert log_rows(expected.folder) == log_rows(resumed.folder)


def test_a_full_disk_during_a_checkpoint_keeps_the_one_before(tcfg, tmp_path, monkeypatch):
    real = files.write_atomic
    full = []

    def write(path, content):
        if full and Path(path).name == "state.safetensors":
            raise OSError(28, "No space left on device", str(path))
        return real(path, content)

    monkeypatch.setattr("lab.saving.write_atomic", write)

    class FillDisk(Progress):
        def step(self, done, *rest):
            full.extend([True] if done == 5 else [])

    with pytest.raises(OSError, match="No space left"):
        train(CFG, tcfg, root=tmp_path, progress=FillDisk())
    assert [path.name for path in (tmp_path / "run" / "checkpoint").glob("*step*")] == ["step-00000003"]
    full.clear()
    assert train(CFG, tcfg, root=tmp_path, progress=Progress()).finished


def test_a_damaged_checkpoint_is_named(tcfg, tmp_path):
    paused = train(CFG, tcfg, root=tmp_path, progress=StopAt(2))
    state = runs.newest_checkpoint(paused.folder) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.safetensors"):
        train(CFG, tcfg, root=tmp_path, progress=Progress())


# ---------------------------------------------------------------- text, progress, terminal


def test_settings_that_do_not_fit_the_text_are_refused(tcfg, tmp_path):
    tiny = tmp_path / "tiny.txt"
    tiny.write_text("A.\n<|endoftext|>\nB.\n<|endoftext|>\n" * 2, encoding="utf-8")
    with pytest.raises(ValueError, match="seq_len=512"):
        train(CFG.replace(max_seq_len=512), tcfg.replace(dataset=str(tiny)), root=tmp_path, progress=Progress())


def test_terminal_progress_shows_what_is_promised(tcfg, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    train(CFG, tcfg.replace(sample_prompt="the"), root=tmp_path, progress=TerminalProgress())
    shown = capsys.readouterr().out
    for words in ("parameters", "tokens", "about", "MB", "step 12/12", "loss", "bits/byte", "tokens/s", "left", "run"):
        assert words in shown, words


def test_progress_outside_a_notebook_is_the_terminals():
    assert type(make_progress()) is TerminalProgress
    assert issubclass(NotebookProgress, Progress)


def test_command_line_reaches_both_configs(text, tmp_path):
    env = {**os.environ, "SANDBOX_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py")]
    models = str(tmp_path / "models")
    code = f"import pathlib, train; train.files.TRAINED_MODELS = pathlib.Path({models!r}); train.main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "--preset", "debug", "--dataset", str(text), "--model-name", "cli", "--max-iters",
         "3", "--warmup-iters", "0", "--model.num-layers", "1", "--eval-documents", "1", "--tokenizer", "512"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert load_model(tmp_path / "models" / "cli")[2] == PRESETS["debug"].replace(num_layers=1)
    wrong = subprocess.run([*command, "--preset", "1b"], env=env, capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 1 and "--preset '1b' is unknown; choose from debug" in wrong.stderr
    wrong = subprocess.run([*command, "--warmup-iters", "99999"], env=env, capture_output=True, text=True, timeout=300)
    assert wrong.returncode != 0 and "warmup_iters=99999" in wrong.stderr and "Traceback" not in wrong.stderr
