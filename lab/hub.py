"""TinyStories from the Hugging Face hub, or a plain reason why not, within seconds.

Left to itself the hub client tries again for 23 s where there is no network, and waits for minutes on a hub that
accepts a connection and then says nothing. So the hub is asked one short question first (`probe`), and the transfer
runs in a process of its own (`stories`), which can be ended at any moment, whatever it hangs in.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from lab.files import ROOT

NAME = "roneneldan/TinyStories"  # Source: Eldan & Li 2023, arXiv 2305.07759
PROBE_SECONDS = 3  # a hub that has not answered by then counts as out of reach
STALL_SECONDS = 20  # ... and so does one that afterwards delivers nothing for so long
CLIENT = [sys.executable, "-m", "lab.hub"]  # the other process: see `_report`


def local_files(split: str) -> list[Path]:
    """The files in which the `datasets` package, or else the hub client, keeps a split of TinyStories here."""
    from huggingface_hub import constants

    datasets_home = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets")
    snapshots = Path(constants.HF_HUB_CACHE) / "datasets--roneneldan--TinyStories" / "snapshots"
    found = [
        *datasets_home.glob(f"roneneldan___tiny_stories/*/*/*/tiny_stories-{split}*.arrow"),
        *snapshots.glob(f"*/data/{split}-*.parquet"),
    ]
    found = [path for path in found if not path.parent.name.endswith(".incomplete")]
    return sorted(path for path in found if path.parent == found[0].parent)  # of one version only, in order


def probe() -> None:
    """Ask the hub for the dataset's entry. Raises ConnectionError, in words, unless it agrees within PROBE_SECONDS."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set, so the Hugging Face hub is not asked")

    def ask() -> Iterator[int]:
        with urllib.request.urlopen(f"{constants.ENDPOINT}/api/datasets/{NAME}", timeout=PROBE_SECONDS) as answer:
            yield answer.status

    try:
        next(in_time(ask, PROBE_SECONDS))
    except TimeoutError:
        raise ConnectionError(f"the Hugging Face hub did not answer within {PROBE_SECONDS} s") from None
    except urllib.error.HTTPError as error:
        raise ConnectionError(f"the Hugging Face hub answered {error.code} ({error.reason})") from None
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)).strip()
        raise ConnectionError(f"the Hugging Face hub cannot be reached ({reason})") from None


def stories(split: str, least_rate: float = 0) -> Iterator[str]:
    """Stream the texts of a split. Raises ConnectionError when the hub client gives up, when nothing comes for
    STALL_SECONDS, or when after that time fewer than `least_rate` characters per second have come."""
    from huggingface_hub import constants

    with subprocess.Popen(
        [*CLIENT, split],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": constants.ENDPOINT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            if not process.stdout.readline():  # comes when the hub client is loaded, which is not the hub's time
                raise ConnectionError("the hub client (package `datasets`) does not load; install requirements.txt")
            begin, received = time.monotonic(), 0
            for text in _texts(process.stdout):
                received += len(text)
                seconds = time.monotonic() - begin
                if seconds > STALL_SECONDS and received < least_rate * seconds:
                    raise ConnectionError(f"the Hugging Face hub is slow ({received / seconds / 1000:.0f} kB/s)")
                yield text
        finally:
            process.kill()


def _texts(lines: Iterable[bytes]) -> Iterator[str]:
    """What the other process then reports, line by line: texts, at last {"end": …} or {"error": …}."""
    with closing(in_time(lambda: iter(lines), STALL_SECONDS)) as timely:
        try:
            for line in timely:
                record = json.loads(line)
                if "error" in record:
                    raise ConnectionError(f"the Hugging Face hub failed ({record['error']})")
                if "end" in record:
                    return
                yield record["text"]
        except TimeoutError:
            raise ConnectionError(f"the Hugging Face hub delivered nothing for {STALL_SECONDS} s") from None
    raise ConnectionError("the transfer from the Hugging Face hub broke off")


def in_time(start: Callable[[], Iterator], seconds: float) -> Iterator:
    """The items of `start()`, made in a thread of their own. Raises TimeoutError when one takes longer than `seconds`.

    A thread that hangs is left behind: neither a name lookup nor a read can be broken off from outside.
    """
    items, stop, end = queue.Queue(maxsize=64), threading.Event(), object()

    def work() -> None:
        try:
            for item in start():
                items.put((item, None))
                if stop.is_set():
                    return
            items.put((end, None))
        except Exception as error:  # handed on, and raised where the items are used
            items.put((end, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        while True:
            item, error = items.get(timeout=seconds)
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    except queue.Empty:
        raise TimeoutError(f"nothing came for {seconds} s") from None
    finally:
        stop.set()
        with suppress(queue.Empty):
            items.get_nowait()  # makes room, in case the thread is waiting to put an item in


def _report(split: str) -> None:
    """The other process: write each text of a split to standard output as a line of JSON."""

    def say(**record: object) -> None:
        sys.stdout.buffer.write(json.dumps(record).encode("ascii") + b"\n")
        sys.stdout.buffer.flush()

    import datasets

    say(loaded=True)
    try:
        for row in datasets.load_dataset(NAME, split=split, streaming=True):
            say(text=row["text"])
        say(end=True)
    except Exception as error:  # the hub client raises dozens of types; the first process reports them all
        say(error=f"{type(error).__name__}: {str(error)[:200]}")


if __name__ == "__main__":
    _report(sys.argv[1])
