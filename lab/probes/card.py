"""The capability card itself: what `probe` found, as text, as a table in a notebook, as a DataFrame."""

from __future__ import annotations

import html
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from lab.probes.tasks import TASKS

if TYPE_CHECKING:
    from pandas import DataFrame

PROTOCOL = 1  # rises whenever the same architecture would get another card


@dataclass(frozen=True)
class Card:
    """What `probe` found. `tasks`: name -> what `summarise` returns; everything in it is plain JSON."""

    name: str
    architecture: str  # the recipe of a layer in its canonical form
    config: dict  # of the small copy
    settings: dict
    parameters: int  # of the small copy's layers and final norm; embeddings depend on the task
    decode_state: int | None  # numbers that the small copy keeps for a row after 128 tokens; None: it cannot decode
    tasks: dict[str, dict]
    protocol: int = PROTOCOL

    @property
    def score(self) -> float:
        """Mean accuracy over the tasks, 0 to 1."""
        return statistics.mean(task["score"] for task in self.tasks.values())

    @property
    def chance(self) -> float:
        """What guessing scores."""
        return statistics.mean(task["chance"] for task in self.tasks.values())

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Card:
        """The card that `to_dict` was asked of. Raises ValueError where a field is missing."""
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise ValueError(f"a card of probes lacks {', '.join(missing)}: measure it again with fresh=True")
        return cls(**{name: values[name] for name in names})

    def df(self) -> DataFrame:
        """A row for each task and level: accuracy (mean over seeds), lowest and highest seed, chance, rate, ..."""
        import pandas as pd

        rows = []
        for name, task in self.tasks.items():
            for level in task["levels"]:
                own = level["accuracy"]
                rows.append({
                    "task": name, "level": level["level"], "unit": TASKS[name].unit, "trained": level["trained"],
                    "accuracy": statistics.mean(own), "lowest": min(own), "highest": max(own),
                    "chance": level["chance"], "rate": level["rate"], "cpu seconds to 99 %": level["seconds_to_99"],
                    "diverged": level["diverged"],
                })  # fmt: skip
        return pd.DataFrame(rows)

    def rows(self) -> list[dict[str, str]]:
        """The lines of the card's table, as text."""
        lines = [_line(TASKS[name].title, TASKS[name].unit, task) for name, task in self.tasks.items()]
        spread = _seed_scores(self.tasks)
        lines.append({
            "task": "mean", "accuracy": _percent(self.score), "seeds": _range(spread), "chance": _percent(self.chance),
            "by difficulty": "", "99 % after": "", "rate": "",
        })  # fmt: skip
        return lines

    def heading(self) -> str:
        """What was probed, in which size, and what that costs."""
        s, named = self.settings, "" if self.name == self.architecture else f" of {self.name}"
        state = (
            "no decoding"
            if self.decode_state is None
            else f"decode state {self.decode_state:,} numbers after 128 tokens"
        )
        usual = {"Attn": ("attn_block", "MQA"), "MLP": ("mlp_block", "MLP")}
        chosen = {slot: self.config.get(field, kind) for slot, (field, kind) in usual.items()}
        others = [f"{slot} = {kind}" for slot, kind in chosen.items() if kind != usual[slot][1]]
        blocks = f" with {', '.join(others)}" if others else ""
        rates = ", ".join(f"{rate:g}" for rate in s["rates"])
        return (
            f"Capability card{named}: {self.architecture}{blocks}\n"
            f"2 layers of width 64, {self.parameters:,} parameters beside the embeddings, {state}; "
            f"{s['seeds']} seeds, rates {rates}, at most {s['seconds']:g} CPU seconds a run"
        )

    def notes(self) -> list[str]:
        """What must be said beside the table."""
        lines = ["Accuracy in per cent, mean over seeds at the best rate. Chance: the best rule that ignores the task."]
        if any(not level["trained"] for task in self.tasks.values() for level in task["levels"]):
            lines.append("*: longer than any row in training; not part of the score.")
        if smaller := [TASKS[name].title for name in self.tasks if TASKS[name].deviates]:
            lines.append(f"Smaller than in MAD, arXiv 2403.17844 (TASKS[...].deviates says how): {', '.join(smaller)}.")
        for name, task in self.tasks.items():
            runs, broken = len(task["runs"]), [run for run in task["runs"] if run["diverged"]]
            if broken:
                first = f"rate {broken[0]['rate']:g}, seed {broken[0]['seed']}: {broken[0]['diverged']}"
                lines.append(f"{TASKS[name].title}: {len(broken)} of {runs} runs diverged ({first}).")
        return lines

    def __str__(self) -> str:
        rows = self.rows()
        widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
        left = ("task", "by difficulty")
        lines = [
            "  ".join(row[key].ljust(w) if key in left else row[key].rjust(w) for key, w in widths.items()).rstrip()
            for row in [{key: key for key in widths}, *rows]
        ]
        return "\n".join([self.heading(), "", *lines, "", *self.notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self.rows()
        head = "".join(f"<th style='text-align:left'>{html.escape(key)}</th>" for key in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row.values()) + "</tr>"
            for row in rows
        )
        title = html.escape(self.heading()).replace("\n", "<br>")
        notes = "<br>".join(map(html.escape, self.notes()))
        return f"<p>{title}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><p>{notes}</p>"


def _line(title: str, unit: str, task: dict) -> dict[str, str]:
    levels, reached = task["levels"], task["seconds_to_99"]
    solved = [seconds for seconds in reached if seconds is not None]
    after = f"{statistics.mean(solved):.1f} s" if solved else "never"
    if solved and len(solved) < len(reached):
        after += f" ({len(solved)} of {len(reached)})"
    marks = ["" if level["trained"] else "*" for level in levels]
    by = [
        f"{level['level']}{mark}: {100 * statistics.mean(level['accuracy']):.0f}" for level, mark in zip(levels, marks)
    ]
    return {
        "task": title, "accuracy": _percent(task["score"]), "seeds": _range(task["by_seed"]),
        "chance": _percent(task["chance"]), "by difficulty": f"{unit} {', '.join(by)}", "99 % after": after,
        "rate": " ".join(f"{rate:g}" for rate in dict.fromkeys(level["rate"] for level in levels)),
    }  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _range(shares: Sequence[float]) -> str:
    return f"{100 * min(shares):.1f}–{100 * max(shares):.1f}"


def _seed_scores(tasks: dict[str, dict]) -> list[float]:
    """The card's score seed by seed."""
    return [statistics.mean(scores) for scores in zip(*(task["by_seed"] for task in tasks.values()))]
