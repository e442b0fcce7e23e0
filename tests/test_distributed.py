"""Training on two processes under torchrun: the same losses as one, one writer of files, no hanging."""

import contextlib
import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

import train
from config import PRESETS, TrainConfig
from lab import distributed
from lab.data import Batches, PackedTokens
from lab.saving import load_model

ROOT = Path(__file__).resolve().parent.parent
TIMED = ("Time Elapsed", "Tokens Per Second")
# What a terminal runs is train.py itself. This puts its models into a folder of the test, and trains several in turn.
DRIVER = """
import json, sys
from pathlib import Path
import torch, train
from lab import distributed, files
files.TRAINED_MODELS = Path(sys.argv[1])
{patch}
for arguments in json.loads(sys.argv[2]):
    train.main(arguments)
distributed.leave()
"""
SETTINGS = {
    "tokenizer": "byte", "batch_size": 4, "grad_accum_steps": 2, "max_iters": 12, "warmup_iters": 2,
    "eval_interval": 3, "eval_documents": 4, "checkpoint_interval": 4, "sample_prompt": "", "device": "cpu",
    "num_threads": 1, "precision": "fp32",
}  # fmt: skip
MODEL = {"dim": 16, "head_dim": 8, "vocab_size": 260, "max_seq_len": 32}  # the rest as in the preset "debug"
EXPERTS = 'Norm->Attn->+->Norm->MoE(experts=4, balance=0.5)->+->Norm->MoE(experts=4, bias=true, router="sigmoid")->+'
# Muon orthogonalises in bfloat16, which turns a rounding error into one of 1 %: at its usual rate two runs drift apart.
RUNS = {
    "adamw": {"optimizer": "adamw"},
    "muon": {"optimizer": "muon", "muon_lr": 1e-3},
    "experts": {"optimizer": "adamw", "recipe": EXPERTS},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    dice = random.Random(0)
    words = "the cat dog sat ran on a mat red big and then it was happy".split()
    stories = [" ".join(dice.choices(words, k=40)) + "." for _ in range(120)]
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("".join(f"{story}\n<|endoftext|>\n" for story in stories), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def cache(text, monkeypatch):
    monkeypatch.setenv("SANDBOX_CACHE", str(text.parent / "cache"))


def settings(text: Path, name: str, **changes) -> dict:
    return SETTINGS | {"dataset": str(text), "model_name": name} | RUNS.get(name, {}) | changes


def arguments(text: Path, name: str, **changes) -> list[str]:
    """What is typed behind `train.py`."""
    chosen = settings(text, name, **changes)
    model = MODEL | {"recipe": chosen.pop("recipe", "")}
    options = chosen | {f"model.{field}": value for field, value in model.items()}
    pairs = [(f"--{name.replace('_', '-')}", str(value)) for name, value in options.items()]
    return ["--preset", "debug", *(part for pair in pairs for part in pair)]


def alone(text: Path, folder: Path, name: str, **changes) -> train.Run:
    """The same in this process."""
    chosen = settings(text, name, **changes)
    cfg = PRESETS["debug"].replace(**MODEL, recipe=chosen.pop("recipe", ""))
    return train.train(cfg, TrainConfig(**chosen), root=folder, progress=train.Progress())


def launch(folder: Path, *runs: list[str], processes: int = 2, patch: str = "") -> subprocess.Popen:
    """Starts torchrun."""
    folder.mkdir(exist_ok=True)
    script = folder / "driver.py"
    script.write_text(DRIVER.format(patch=patch), encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *torchrun, str(script), str(folder), json.dumps(runs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, env=environment, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen) -> str:
    """What it printed. A hanging one is ended, its processes too, and fails the test."""
    try:
        return process.communicate(timeout=200)[0]
    finally:
        if process.poll() is None:
            for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                child.kill()


def rows(folder: Path) -> list[dict]:
    with open(folder / "log_data.csv", newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]


def same_log(a: Path, b: Path) -> None:
    first, second = rows(a), rows(b)
    assert len(first) == len(second) > 2
    for one, two in zip(first, second, strict=True):
        # what rounding did to the weights shows more in the gradient, and in the exponential of the loss
        for sensitive in ("Gradient Norm", "Perplexity"):
            assert one.pop(sensitive) == pytest.approx(two.pop(sensitive), rel=1e-3)
        assert one == pytest.approx(two, rel=1e-5, abs=1e-5)


def wait_for(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < end, finish(process)
        time.sleep(0.02)


# ---------------------------------------------------------------- the same as one process


def test_two_processes_have_the_losses_of_one(text, tmp_path):
    process = launch(tmp_path / "two", *(arguments(text, name) for name in RUNS))
    for name in RUNS:
        alone(text, tmp_path / "one", name)
    output = finish(process)
    assert process.returncode == 0, output
    assert output.count(" bits/byte ") == 5 * len(RUNS) and "Warning" not in output  # one process prints
    for name in RUNS:
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        same_log(one, two)
        ours = load_model(two)[0].state_dict()
        for key, weight in load_model(one)[0].state_dict().items():
            torch.testing.assert_close(ours[key], weight, rtol=1e-3, atol=1e-3)
        record = json.loads((two / "run.json").read_text(encoding="utf-8"))
        assert record["machine"]["processes"] == 2 and record["steps"] == 12
        assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())


# ---------------------------------------------------------------- faults


KILLED = """
class Deadly(train.Progress):
    def step(self, done, *rest):
        if done == 6 and not list(Path(sys.argv[1]).glob("killed")):
            Path(sys.argv[1], "killed").touch()
            import os, psutil, signal
            other, = [p for p in psutil.Process(os.getppid()).children() if p.pid != os.getpid()]
            os.kill(other.pid, signal.SIGKILL)
train.make_progress = Deadly
"""


def test_a_killed_process_ends_all_and_the_run_resumes_on_another_number(text, tmp_path):
    alone(text, tmp_path / "one", "adamw")
    process = launch(tmp_path / "two", arguments(text, "adamw"), patch=KILLED)
    output = finish(process)
    assert process.returncode != 0 and "Signal 9 (SIGKILL)" in output, output
    folder = tmp_path / "two" / "adamw"
    assert [path.name for path in (folder / "checkpoint").glob("step-*")] == ["step-00000004"]
    run = alone(text, tmp_path / "two", "adamw")  # one process takes over what two began
    assert run.finished and run.folder == folder
    same_log(tmp_path / "one" / "adamw", folder)


PRESSED = """
class Pressing(train.Progress):
    def step(self, done, *rest):
        if done == 5 and not list(Path(sys.argv[1]).glob("pressed")):
            Path(sys.argv[1], "pressed").touch()
            import os, psutil, signal
            other, = [p for p in psutil.Process(os.getppid()).children() if p.pid != os.getpid()]
            os.kill(other.pid, signal.SIGINT)
train.make_progress = Pressing
"""


def test_stopped_in_one_process_all_stop_at_the_same_step(text, tmp_path):
    alone(text, tmp_path / "one", "experts")
    run = arguments(text, "experts")
    process = launch(tmp_path / "two", run, run, patch=PRESSED)  # the second call goes on
    output = finish(process)
    assert process.returncode == 0, output
    same_log(tmp_path / "one" / "experts", tmp_path / "two" / "experts")


BROKEN = """
real = train.Step.backward
def backward(step, x, y):
    bad = distributed.rank() == 1 and step.count == 5
    return float("nan") if bad and not real(step, x, y) == 0 else real(step, x, y)
train.Step.backward = backward
"""


def test_a_loss_that_is_not_finite_in_one_process_stops_all(text, tmp_path):
    process = launch(tmp_path / "two", arguments(text, "adamw", checkpoint_interval=100), patch=BROKEN)
    output = finish(process)
    assert process.returncode != 0
    assert output.count("train.py: loss=nan") == 1 and "at step 5" in output, output
    kept = [path.name for path in (tmp_path / "two" / "adamw" / "checkpoint").glob("step-*")]
    assert kept == ["step-00000005"]


# ---------------------------------------------------------------- parts


def test_the_rows_are_split_without_overlap(monkeypatch):
    stream = PackedTokens(torch.arange(1000).numpy(), torch.zeros(1).long().numpy(), 1000, 1, 1000, "ring")
    x, _ = Batches(stream, batch_size=24, seq_len=10).get(0)
    monkeypatch.setattr(distributed, "size", lambda: 4)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.own_rows(x, parts=3))
    assert all(share.shape == (6, 10) for share in shares)
    assert sorted(torch.cat(shares)[:, 0].tolist()) == sorted(x[:, 0].tolist())
    for part in range(3):  # each micro-batch holds the same rows, whatever the number of processes
        together = torch.cat([share.chunk(3)[part] for share in shares])
        assert torch.equal(together, x.chunk(3)[part])


def test_rows_that_cannot_be_shared_out(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(ValueError, match="batch_size=3 must be a multiple of the 2 processes"):
        distributed.check_rows(3)


def test_gradients_are_exchanged_once_in_a_step(monkeypatch):
    step = train.make_step(PRESETS["debug"].replace(**MODEL), TrainConfig(grad_accum_steps=3, precision="fp32"), "cpu")
    events = []

    class Recorded:
        losses = staticmethod(step.losses)

        def __call__(self, *inputs):
            events.append("pass")
            return self.losses(*inputs)

        @contextlib.contextmanager
        def no_sync(self):
            events.append("quiet")
            yield

    step.losses = Recorded()
    monkeypatch.setattr(distributed, "size", lambda: 2)
    step.backward(torch.ones(6, 8, dtype=torch.int64), torch.ones(6, 8, dtype=torch.int64))
    assert events == ["quiet", "pass", "quiet", "pass", "pass"]


def test_alone_everything_is_left_as_it_is():
    assert distributed.size() == 1 and distributed.is_first()
    x = torch.zeros(3, 2)
    assert distributed.own_rows(x, 1) is x and distributed.total(x) is x and distributed.mean(0.1) == 0.1
    assert distributed.wrap(torch.nn.Linear(1, 1), print) is print and distributed.share(x) is x
    distributed.join(torch.device("cpu"))
    with distributed.first_then_others():
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("device", ["mps", "cuda:1"])
def test_devices_that_processes_cannot_share(monkeypatch, device):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=f"device='{device}' cannot be shared by several processes: use 'cpu'"):
        distributed.join(torch.device(device))
