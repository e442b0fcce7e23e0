"""Training on several processes at once, one for each GPU or share of the CPU, through PyTorch's own engine.

    torchrun --nproc-per-node=2 train.py --preset 2m --dataset my_stories.txt --batch-size 8

Every process ("rank") holds the whole model and reads its own part of each batch's rows; PyTorch's
DistributedDataParallel averages the gradients, so that all of them take the same step. Settings mean the whole: of
batch_size=8 rows each of two processes takes 4, and the losses are those of a single process but for rounding (and for
dropout, which differs). The first process, rank 0, alone prints, evaluates and writes files. Processes on several
machines must share the folders of models and cache.

In a single process every function here does nothing, or returns what it was given.
Source: Li et al. 2020, arXiv 2006.15704.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

# How long a process waits for another, such as for the first one that tokenizes a big text. Nobody waits for a process
# that died: torchrun then ends all of them.
LONGEST_WAIT = timedelta(hours=12)


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; known from torchrun before `join`."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that prints and writes files."""
    return rank() == 0


def join(device: torch.device) -> None:
    """Meets the other processes that torchrun started, once; each takes a GPU of its own where `device` is one.

    Raises ValueError for a device that they cannot share.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    _take_device(device)
    if not dist.is_initialized():
        nccl = device.type == "cuda" and dist.is_nccl_available()
        dist.init_process_group("nccl" if nccl else "gloo", timeout=LONGEST_WAIT)


def leave() -> None:
    """At the end of the program, if it went well; after an error the others may never come to take their leave."""
    if size() > 1:
        dist.destroy_process_group()


def _take_device(device: torch.device) -> None:
    if device.type == "mps" or device.index is not None:
        raise ValueError(f"device='{device}' cannot be shared by several processes: use 'cpu', or 'cuda' for all GPUs")
    if device.type == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise ValueError(f"--nproc-per-node must be at most {there}, the number of GPUs here; or use device='cpu'")
        torch.cuda.set_device(local)


# ---------------------------------------------------------------- one step


def check_rows(batch_size: int) -> None:
    """Raises ValueError where the processes cannot share the rows of a forward pass evenly."""
    if batch_size % size():
        raise ValueError(
            f"batch_size={batch_size} must be a multiple of the {size()} processes, since each takes an equal share of "
            "its rows: change it, or --nproc-per-node"
        )


def own_rows(rows: Tensor, parts: int) -> Tensor:
    """This process's share of a step's rows: (A*B, T) -> (A*B/N, T), where each of N processes takes B/N of each of
    the A=`parts` micro-batches. Together they take every row once."""
    if size() == 1:
        return rows
    return rows.unflatten(0, (parts, size(), -1))[:, rank()].flatten(0, 1)


class _Losses(nn.Module):
    """What DistributedDataParallel takes: a module whose forward gives all that is differentiated."""

    def __init__(self, model: nn.Module, losses: Callable):
        super().__init__()
        self.model, self.losses = model, losses
        self.unused = nn.Parameter(torch.zeros(1))  # PyTorch warns of looking for unused parameters where it finds none

    def forward(self, *inputs):
        return self.losses(*inputs)


def wrap(model: nn.Module, losses: Callable) -> Callable:
    """`losses`, a function that runs `model`, with gradients that are averaged over the processes.

    Afterwards all processes have the first one's weights.
    """
    if size() == 1:
        return losses
    # Buffers need no exchange, since what blocks count is the same everywhere (`total`). A block may leave a parameter
    # out of a step: it then waits for no gradient.
    whole = _Losses(model, losses)
    return nn.parallel.DistributedDataParallel(whole, forward_sync_buffers=False, find_unused_parameters=True)


def exchange(losses: Callable, now: bool) -> contextlib.AbstractContextManager:
    """Around one forward and backward pass: gradients go to the other processes only where `now`.

    Of several passes that are added up, only the last needs to: the sum then is exchanged once.
    """
    return contextlib.nullcontext() if now or size() == 1 else losses.no_sync()


def own_dropout(seed: int, step: int) -> None:
    """Gives each process but the first random numbers of its own, which follow from `seed` and `step` alone."""
    if rank() > 0:
        torch.manual_seed((seed * 1_000_003 + step) * size() + rank())


def total(counts: Tensor) -> Tensor:
    """The sum of a tensor over all processes; without gradient."""
    if size() > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts


def mean(number: float) -> float:
    """The mean of a number over all processes, the same in each."""
    if size() == 1:
        return number
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return total(torch.tensor(number, dtype=torch.float64, device=device)).item() / size()


# ---------------------------------------------------------------- who does what


def share(value):
    """The first process's `value`, in every process."""
    box = [value]
    if size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def wait() -> None:
    """Goes on when all processes have come here."""
    if size() > 1:
        dist.barrier()


@contextlib.contextmanager
def first_then_others() -> Iterator[None]:
    """The first process does the work; the others do it afterwards, when they find what it has left on the disk."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()
