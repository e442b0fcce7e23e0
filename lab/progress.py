"""How a training run shows itself: one line that is redrawn, and at every evaluation a row (terminal) or a picture.

Progress            says nothing: for tests and scripts
TerminalProgress    lines
NotebookProgress    one status line and one picture, redrawn in place
"""

import math
import sys
import time
from collections import deque

from lab.runs import Log, minutes


class Progress:
    """The silent one, and what the others have in common: speed, time left, the status line."""

    redraw_seconds = 0.5

    def __init__(self):
        self.times: deque[float] = deque(maxlen=30)  # when the last steps ended
        self.bits_per_byte, self.started, self.drawn_at = math.nan, None, 0.0

    def say(self, line: str) -> None:
        """Something that stays to be read."""

    def step(self, done: int, total: int, loss: float, tokens_per_step: int) -> None:
        """After every optimizer step."""
        now = time.perf_counter()
        self.times.append(now)
        self.started = self.started or (done, now)  # the first step is slower than the others
        first, since = self.started
        if len(self.times) < 2 or (now - self.drawn_at < self.redraw_seconds and done < total):
            return
        self.drawn_at = now
        seconds_left = (now - since) / (done - first) * (total - done)
        speed = (len(self.times) - 1) * tokens_per_step / (now - self.times[0])
        self.status(
            f"step {done:,}/{total:,}  loss {loss:.3f}  {self.bits_per_byte:.3f} bits/byte  "
            f"{speed:,.0f} tokens/s  {minutes(seconds_left)} left"
        )

    def status(self, line: str) -> None:
        """Replaces the line before."""

    def evaluation(self, log: Log, sample: str) -> None:
        """After every evaluation; the newest is log.rows[-1]."""
        self.bits_per_byte = log.rows[-1]["Bits Per Byte"]
        self.times.clear()  # an evaluation is not a slow step

    def close(self, line: str) -> None:
        """At the end."""


class TerminalProgress(Progress):
    """For a terminal, or a log file, where nothing can be redrawn and only evaluations leave a line."""

    def say(self, line: str) -> None:
        self.status("")
        print(line, flush=True)

    def status(self, line: str) -> None:
        if sys.stdout.isatty():
            print(f"\r\x1b[K{line}", end="", flush=True)

    def evaluation(self, log: Log, sample: str) -> None:
        super().evaluation(log, sample)
        row = log.rows[-1]
        self.say(
            f"step {row['Step']:>6,}  train {row['Train Loss']:.3f}  valid {row['Validation Loss']:.3f}  "
            f"{row['Bits Per Byte']:.4f} bits/byte  {row['Tokens Per Second']:>8,.0f} tokens/s  "
            f"{minutes(row['Time Elapsed'])}"
        )
        if sample:
            print("    " + printable(sample)[:150], flush=True)

    def close(self, line: str) -> None:
        self.say(line)


class NotebookProgress(Progress):
    """Two outputs of one cell, redrawn in place, so that the saved notebook keeps only the last of each."""

    def __init__(self):
        super().__init__()
        self.line = self.picture = None

    def say(self, line: str) -> None:
        print(line, flush=True)

    def status(self, line: str) -> None:
        from IPython.display import display

        text = {"text/plain": line}
        if self.line is None:
            self.line = display(text, raw=True, display_id=True)
        else:
            self.line.update(text, raw=True)

    def evaluation(self, log: Log, sample: str) -> None:
        super().evaluation(log, sample)
        if len(log.rows) < 2:  # a curve of one point is no picture
            return
        import matplotlib.pyplot as plt
        from IPython.display import display

        figure = draw_progress(log, sample)
        if self.picture is None:
            self.picture = display(figure, display_id=True)
        else:
            self.picture.update(figure)
        plt.close(figure)

    def close(self, line: str) -> None:
        print(line, flush=True)


def draw_progress(log: Log, sample: str):
    """A figure of training and validation loss over the steps, with the newest sample under it."""
    import textwrap

    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    steps = [row["Step"] for row in log.rows]
    axes.plot(steps, [row["Train Loss"] for row in log.rows], color="#8fa9bf", label="training")
    axes.plot(steps, [row["Validation Loss"] for row in log.rows], color="#c4511d", label="validation")
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_title(f"{log.rows[-1]['Bits Per Byte']:.3f} bits per byte after {steps[-1]:,} steps", loc="left")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if sample:
        text = textwrap.shorten(printable(sample), 210, placeholder=" …").replace("$", r"\$")
        figure.supxlabel("\n".join(textwrap.wrap(text, 105)), fontsize=8, style="italic", x=0.02, ha="left")
    return figure


def printable(text: str) -> str:
    """One line without control characters, of which a model that has learned little writes many."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def make_progress() -> Progress:
    """The one that fits where the code runs."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return NotebookProgress() if shell is not None and hasattr(shell, "kernel") else TerminalProgress()
