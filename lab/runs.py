"""A training run's folder: who may use it, its checkpoints, its log, and what is recorded of how it came about.

trained_models/<name>/checkpoint/step-00000500/    one folder per checkpoint, complete as soon as it has this name
trained_models/<name>/log_data.csv                 one row per evaluation
trained_models/<name>/run.json                     written at the end: text, tokens, seconds, machine, results
"""

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from config import Config, ModelConfig, TrainConfig
from lab import files
from lab.saving import load_tensors, model_folder, save_tensors

COLUMNS = (
    "Step", "Learning Rate", "Train Loss", "Validation Loss", "Perplexity", "Time Elapsed",
    "Bits Per Byte", "Tokens Seen", "Tokens Per Second", "Gradient Norm",
)  # fmt: skip
# Settings that the machine may choose, and the value that leaves it the choice.
MACHINE = {"device": "auto", "precision": "auto", "kernel": "auto", "num_threads": 0}
FREE = ("model_name", "checkpoint_interval", "sample_prompt")  # these may change when a run is resumed

# ---------------------------------------------------------------- whose folder


def claim_folder(
    root: Path, cfg: ModelConfig, asked: TrainConfig, resolved: TrainConfig
) -> tuple[Path, TrainConfig, Path | None]:
    """The folder to train in, the settings to train with, and the checkpoint to go on from (None: a new run).

    asked: the settings as given. resolved: the same with device and threads chosen for this machine. A resumed run
    keeps its own choice of these, of precision and of kernel, where `asked` leaves them open.
    Raises ValueError if an unfinished run of this name has other settings.
    """
    number = 1
    while True:
        folder = root / (asked.model_name if number == 1 else f"{asked.model_name}-{number}")
        resolved = resolved.replace(model_name=folder.name)
        checkpoint = newest_checkpoint(folder)
        if checkpoint is not None and not _is_finished(folder):
            return folder, _resumed_settings(folder, checkpoint, cfg, asked), checkpoint
        if not (folder / "model.safetensors").exists():
            return folder, resolved, None
        number += 1


def _is_finished(folder: Path) -> bool:
    path = folder / "run.json"
    return path.exists() and files.read_json(path).get("finished") is True


def _resumed_settings(folder: Path, checkpoint: Path, cfg: ModelConfig, asked: TrainConfig) -> TrainConfig:
    saved = files.read_json(checkpoint / "configs.json")
    tcfg = TrainConfig.from_dict(saved["train"])
    own = {name: getattr(tcfg, name) for name, unset in MACHINE.items() if getattr(asked, name) == unset}
    wanted = asked.replace(**own, **{name: getattr(tcfg, name) for name in FREE})
    other = [differences(ModelConfig.from_dict(saved["model"]), cfg), differences(tcfg, wanted)]
    if any(other):
        raise ValueError(
            f"model_name={folder.name!r} is an unfinished run with other settings ({', '.join(filter(None, other))}): "
            "give these to go on with it, choose another model_name, or delete its folder"
        )
    return tcfg.replace(**{name: getattr(asked, name) for name in FREE if name != "model_name"})


def differences(a: Config, b: Config) -> str:
    """Fields in which two configs differ: "dim 64, not 128", "" if there are none."""
    pairs = [(name, value, b.to_dict()[name]) for name, value in a.to_dict().items()]
    return ", ".join(f"{name} {mine!r}, not {theirs!r}" for name, mine, theirs in pairs if mine != theirs)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps the folder to this process; a process that dies gives it free. Raises ValueError if another one has it."""
    import filelock

    lock = filelock.FileLock(folder / "checkpoint" / "lock")
    with files.clear_write_errors(folder):
        (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise ValueError(
            f"model_name={folder.name!r} is being trained by another process: wait for it, or choose another name"
        ) from error
    try:
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------- checkpoints


def save_checkpoint(folder: Path, cfg: ModelConfig, tcfg: TrainConfig, state: dict) -> Path:
    """Writes checkpoint/step-N/ whole, then removes the older ones. A kill at any moment leaves the old or the new."""
    home = folder / "checkpoint"
    final = home / f"step-{state['step']:08d}"
    with files.clear_write_errors(final):
        home.mkdir(parents=True, exist_ok=True)
        temporary = files.temporary_beside(final)
        temporary.mkdir()
        try:
            files.write_json(temporary / "configs.json", {"model": cfg.to_dict(), "train": tcfg.to_dict()})
            save_tensors(temporary / "state.safetensors", state)
            if final.exists():  # the same step again: exactness makes it the same state
                shutil.rmtree(final)
            os.replace(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        files.sync_folder(home)
    for other in [*home.glob("step-*"), *files.leftovers(home)]:
        if other != final:
            shutil.rmtree(other)
    return final


def load_checkpoint(checkpoint: Path) -> dict:
    """What `save_checkpoint` was given as `state`. Raises ValueError if the file is damaged."""
    return load_tensors(checkpoint / "state.safetensors")


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    return max((folder / "checkpoint").glob("step-*"), default=None)


def drop_checkpoints(folder: Path) -> None:
    """Once a model is saved, its checkpoints have done their work."""
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


# ---------------------------------------------------------------- log


class Log:
    """The rows of log_data.csv. The file is replaced whole at every row: it is never torn, and no step stands twice."""

    def __init__(self, folder: Path):
        self.path = folder / "log_data.csv"
        self.rows: list[dict] = []

    def add(self, row: dict) -> None:
        if tuple(row) != COLUMNS:
            raise ValueError(f"row has the columns {list(row)}; log_data.csv needs {list(COLUMNS)}")
        if self.rows and row["Step"] <= self.rows[-1]["Step"]:
            raise ValueError(f"Step={row['Step']} is already in {self.path.name}, or before its last row")
        self.restore([*self.rows, row])

    def restore(self, rows: list[dict]) -> None:
        """Goes back to the rows of a checkpoint; what was logged after it will be logged again."""
        self.rows = rows
        lines = [",".join(COLUMNS), *(",".join(repr(row[name]) for name in COLUMNS) for row in rows)]
        files.write_atomic(self.path, "\n".join(lines) + "\n")


# ---------------------------------------------------------------- records


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers that are learned, tied ones once: total, embedding (token and position tables, head), other."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    embedding = sum(n for name, n in sizes.items() if name.startswith(("embed.", "position_embed.", "head.")))
    return {"total": sum(sizes.values()), "embedding": embedding, "other": sum(sizes.values()) - embedding}


def past_of(name: str) -> dict:
    """Name, tokens and seconds of the model that a run started from; {} if it started from random weights."""
    if not name:
        return {}
    folder = model_folder(name)
    record = files.read_json(folder / "run.json") if (folder / "run.json").exists() else {}
    return {"name": folder.name} | {key: record[key] for key in ("tokens_seen", "seconds") if key in record}


def describe_machine(tcfg: TrainConfig) -> dict:
    """What the speed of a run depends on."""
    device = torch.device(tcfg.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "processor": name, "device": tcfg.device, "precision": tcfg.precision, "kernel": tcfg.kernel,
        "threads": tcfg.num_threads, "cores": os.cpu_count(), "system": platform.system(),
    }  # fmt: skip


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    from importlib.metadata import version

    return {"python": platform.python_version()} | {name: version(name) for name in ("torch", "sentencepiece", "numpy")}


def commit() -> str | None:
    """The commit of the code, with "-dirty" if it was changed since; None outside a git checkout."""
    command = ["git", "-C", str(files.ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def minutes(seconds: float) -> str:
    """Seconds as people say them: "40 s", "2 min 05 s", "1 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def most_memory(device: torch.device) -> dict[str, float | None]:
    """What stands in run.json: MB that this process held at most since it began, and on a GPU the tensors there.

    "peak_memory_mb" is None where the system does not tell (Windows). In a notebook it counts all cells before, too.
    """
    found: dict[str, float | None] = {"peak_memory_mb": None}
    if platform.system() in ("Linux", "Darwin"):
        import resource

        unit = 1 if platform.system() == "Darwin" else 1024  # bytes in what getrusage counts
        found["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    if device.type == "cuda":
        found["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return found


def larger(a: dict[str, float | None], b: dict[str, float | None]) -> dict[str, float | None]:
    """Of two records of `most_memory` the larger of each figure: for a run that was resumed."""
    return {key: max((x[key] for x in (a, b) if x.get(key) is not None), default=None) for key in a | b}


def peak_memory(device: torch.device) -> float:
    """MB in use: of the GPU for a model there, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import psutil

    return psutil.Process().memory_info().rss / 1e6
