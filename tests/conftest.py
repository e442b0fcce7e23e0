"""What every test starts from: one thread, fixed seeds, no network, pictures drawn without a screen."""

import os
import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import tqdm

# Set before anything imports torch, matplotlib or the hub's client; processes that tests start inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# tqdm's own lock is shared between forked processes: one that a test kills while it holds it would stop all the others.
tqdm.tqdm.set_lock(threading.RLock())

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("suite", max_examples=50, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def same_start():
    """The same random state before every test, whatever ran before it and in whichever process."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """`shared_data("tinystories_valid.txt")`: a file of real text beside the checkout; skips where there is none."""

    def find(name: str) -> Path:
        path = ROOT.parent / "shared" / "data" / name
        if not path.exists():
            pytest.skip(f"needs {name}, which is not part of the repository")
        return path

    return find
