"""Run notebooks from a terminal, from top to bottom, and see at once what they print.

    python -m lab.notebooks train.ipynb --output-dir executed      # run; the executed copy goes to executed/train.ipynb
    python -m lab.notebooks inference.ipynb --in-place             # run and save, as the committed notebooks are

The notebook's settings come from the environment (`FAST=1`, `DATASET=storyworld`, ...), which the kernel inherits.
Text is shown as it comes, pictures stay in the notebook. Ctrl-C interrupts the running cell, so that a training run
saves its checkpoint, and no further cell is started; a second Ctrl-C ends the kernel.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TextIO

import nbformat
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError, DeadKernelError

from lab.files import write_atomic

LOG_SECONDS = 10  # in a log, where a line cannot be redrawn, a progress line is repeated at most this often
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
CLEAR_LINE = "\x1b[K"


class Interrupted(Exception):
    """Ctrl-C: the running cell was interrupted and the cells after it were not started."""


def execute(
    notebook: nbformat.NotebookNode,
    folder: Path,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    out: TextIO | None = None,
) -> None:
    """Runs all cells in a fresh kernel and puts their outputs into `notebook`, which is normalised too.

    folder: where the notebook lies; the modules beside it can be imported whatever the working directory.
    cwd: the kernel's working directory, by default `folder`, as in JupyterLab. env: variables to set beside those of
    this process. timeout: seconds that one cell may take. out: gets what is printed, as it comes.
    Raises CellExecutionError (source and traceback of the cell that failed; the outputs so far are in `notebook`),
    CellTimeoutError, DeadKernelError, Interrupted.
    """
    folder = Path(folder).resolve()
    variables = {**os.environ, **(env or {})}
    variables.pop("MPLBACKEND", None)  # pictures belong into the notebook, whatever this process draws on
    variables.setdefault("GOMP_SPINCOUNT", "1000")  # threads that spin for long ruin a busy machine: see train.py
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), variables.get("PYTHONPATH")]))
    try:
        with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
            client = _Client(notebook, sockets, screen=_Screen(out) if out else None, timeout=timeout)
            asyncio.run(client.run(cwd=str(cwd or folder), env=variables))
    finally:
        normalise(notebook)


def normalise(notebook: nbformat.NotebookNode) -> None:
    """Leaves in the metadata only what the next reader needs, so that running a notebook twice changes nothing else,
    and pictures with at most 256 colours."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            if "image/png" in data:
                data["image/png"] = with_few_colours(data["image/png"])


def with_few_colours(png: str) -> str:
    """A PNG (base64) with at most 256 colours: of a plot it takes a third of the space and looks the same."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P" or (picture.mode == "RGBA" and picture.getextrema()[3] != (255, 255)):
        return png  # done already, or it lets something through
    file = io.BytesIO()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return min(png, base64.b64encode(file.getvalue()).decode(), key=len)


def save(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Writes the notebook whole or not at all."""
    write_atomic(path, nbformat.writes(notebook) + "\n")


class _Client(NotebookClient):
    """Shows messages of the kernel as they come, and turns Ctrl-C into an interrupt of the running cell."""

    def __init__(self, notebook: nbformat.NotebookNode, sockets: str, screen: "_Screen | None", timeout: float | None):
        super().__init__(notebook, kernel_name="python3", timeout=timeout, record_timing=False, coalesce_streams=True)
        self.sockets, self.screen = sockets, screen
        self.signals, self.executing = 0, False

    def create_kernel_manager(self) -> KernelManager:
        """Talks through sockets in a private folder where the system has them: kernels started at the same time by
        several processes may choose the same TCP ports."""
        manager = super().create_kernel_manager()
        if os.name == "posix":
            manager.transport, manager.ip = "ipc", str(Path(self.sockets, "k"))
        return manager

    async def run(self, **kernel_options) -> None:
        async with self.async_setup_kernel(**kernel_options):
            self._catch_signals()
            for index, cell in enumerate(self.nb.cells):
                await self._run_cell(index, cell)

    async def _run_cell(self, index: int, cell: nbformat.NotebookNode) -> None:
        if self.screen and cell.cell_type == "markdown":
            self.screen.headings(cell.source)
        try:
            await self.async_execute_cell(cell, index, execution_count=self.code_cells_executed + 1)
        except (CellExecutionError, DeadKernelError):
            if not self.signals:
                raise
        finally:
            if self.screen:
                self.screen.end_line()
        if self.signals:
            raise Interrupted

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(RuntimeError):  # Windows, or not the main thread: the kernel is ended instead
                loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self.signals += 1
        if self.signals == 1 and self.screen:
            self.screen.end_line()
            self.screen.text("interrupting the running cell; Ctrl-C again ends it at once\n")
        if self.signals > 1:
            self._soon(self.km.shutdown_kernel(now=True))
        elif self.executing:
            self._soon(self.km.interrupt_kernel())

    def _soon(self, call: Coroutine) -> None:
        self.stopping = asyncio.ensure_future(call)  # kept, or the task could be collected before it has run

    def process_message(self, msg: dict, cell: nbformat.NotebookNode, cell_index: int) -> nbformat.NotebookNode | None:
        kind, content = msg["msg_type"], msg["content"]
        if kind == "execute_input":
            self.executing = True
            if self.signals:  # Ctrl-C came while the cell was on its way: an idle kernel would have ignored it
                self._soon(self.km.interrupt_kernel())
        elif kind == "status":
            self.executing = self.executing and content["execution_state"] != "idle"
        if self.screen:
            self.screen.message(kind, content)
        return super().process_message(msg, cell, cell_index)


class _Screen:
    r"""A terminal or a log. A terminal gets the text as it is, a log neither colours nor lines redrawn with `\r`."""

    def __init__(self, out: TextIO):
        self.out, self.is_terminal = out, out.isatty()
        self.line, self.shown_at = "", 0.0  # the line that is not ended yet, and when one like it was put into the log
        self.in_status, self.waiting = False, ""

    def message(self, kind: str, content: dict) -> None:
        if kind == "stream":
            self.text(content["text"])
        elif kind in ("display_data", "execute_result", "update_display_data"):
            text, redrawn = _as_text(content["data"]), (content.get("transient") or {}).get("display_id")
            if redrawn and text and "\n" not in text:
                self.status(text)
            elif text and kind != "update_display_data":
                self.text(text + "\n")

    def headings(self, markdown: str) -> None:
        """Shows the headings of a text cell, once something is printed under them."""
        titles = re.findall(r"^#+ +(.+)$", markdown, flags=re.MULTILINE)
        style, end = ("\x1b[1m", "\x1b[0m") if self.is_terminal else ("", "")
        self.waiting = "".join(f"\n{style}{title}{end}\n" for title in titles) or self.waiting

    def status(self, line: str) -> None:
        """A line that takes the place of the one before; cut to the terminal, or it would wrap and pile up."""
        width = shutil.get_terminal_size().columns - 1 if self.is_terminal else None
        self._show_headings()
        self._write("\r" + CLEAR_LINE * self.is_terminal + line[:width])
        self.in_status = True

    def text(self, text: str) -> None:
        if not text:
            return
        if self.in_status:
            self.end_line()
        self._show_headings()
        self._write(text)

    def _show_headings(self) -> None:
        waiting, self.waiting = self.waiting, ""
        self._write(waiting)

    def end_line(self) -> None:
        self.in_status = False
        if self.line:
            self._write("\n")

    def _write(self, text: str) -> None:
        *ended, self.line = (self.line + text).split("\n")
        self.line = self.line[max(0, self.line.rfind("\r", 0, -1)) :]  # only the newest state of a redrawn line counts
        if self.is_terminal:
            self._put(text)
            return
        for line in ended:
            self._put(_newest(line) + "\n")
        if "\r" in self.line and _newest(self.line) and time.monotonic() - self.shown_at >= LOG_SECONDS:
            self._put(_newest(self.line) + "\n")
            self.shown_at = time.monotonic()

    def _put(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def _newest(line: str) -> str:
    r"""What a terminal would show of a line with `\r` in it, without colours."""
    return COLOUR.sub("", line).rstrip("\r").rpartition("\r")[2]


def _as_text(data: Mapping[str, str]) -> str:
    """The text of something displayed; "" for pictures and for objects that have no readable text."""
    text = data.get("text/plain", "")
    if any(kind.startswith("image/") for kind in data):
        return ""
    if text.startswith("<") and text.endswith(">"):  # <IPython.core.display.Markdown object>, <Axes: ...>
        text = data.get("text/markdown", "")
    return text


def run(path: Path, *, in_place: bool = False, output_dir: Path | None = None) -> int:
    """Runs one notebook, shows what it prints, saves it as asked. Returns the exit status: 0, 1 failed, 130 Ctrl-C."""
    notebook = nbformat.read(path, as_version=4)
    started = time.monotonic()
    try:
        execute(notebook, path.parent, out=sys.stdout)
    except Interrupted:
        print(f"\n{path.name} was interrupted; a training run goes on where it stopped when it is started again")
        status = 130
    except (CellExecutionError, CellControlSignal) as error:
        text = str(error) if sys.stdout.isatty() else COLOUR.sub("", str(error))
        print(f"\n{path.name} failed. {text.strip()}", file=sys.stderr)
        status = 1
    except DeadKernelError:
        print(f"\n{path.name} failed: its kernel died, perhaps for want of memory", file=sys.stderr)
        status = 1
    else:
        status = 0
    if output_dir:
        save(notebook, output_dir / path.name)
    elif in_place and status == 0:
        save(notebook, path)
        print(f"{path.name} saved after {time.monotonic() - started:.0f} s")
    return status


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.notebooks", description="Run notebooks from top to bottom.")
    parser.add_argument("notebooks", nargs="+", type=Path, help="one or more .ipynb files, run in this order")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--in-place", action="store_true", help="save each notebook with its outputs, if it ran through")
    where.add_argument("--output-dir", type=Path, help="save executed copies there")
    options = parser.parse_args(arguments)
    missing = [str(path) for path in options.notebooks if not path.is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}")
    for path in options.notebooks:
        status = run(path, in_place=options.in_place, output_dir=options.output_dir)
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
