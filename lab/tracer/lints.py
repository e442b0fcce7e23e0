"""What looks like a mistake though it ran.

unused        a result that is never used: a dropout that is called and discarded, a name that is never read
flag          a flag such as `training` or `causal` that a function had and did not hand on
coincidence   a matrix product or other operation that works only because two differently named sizes are equal
broadcast     an elementwise operation that stretches both of its operands, which nobody asked for
hidden        a tensor, parameter or module in a plain attribute, list or dict, where PyTorch does not see it
uncalled      a registered submodule that is never called
"""

from __future__ import annotations

import html
import re
from dataclasses import replace
from typing import Any

from lab.tracer.lint_base import Lint
from lab.tracer.lint_code import flags, unused
from lab.tracer.lint_modules import hidden, uncalled
from lab.tracer.lint_shapes import broadcasts, coincidences

_SEVERAL = ("flag", "hidden", "uncalled")  # of which one line may have several
_FINDERS = (unused, flags, coincidences, broadcasts, hidden, uncalled)


class Lints(list):
    """Lints; shown one a line."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) if self else "no lints"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return f'<pre style="font-family: monospace; white-space: pre-wrap">{html.escape(repr(self))}</pre>'


def find(trace: Any) -> Lints:
    """All lints of a trace, in the order of the list above. What ten equal layers have in common is said once."""
    groups: dict[tuple, list[Lint]] = {}
    for finder in _FINDERS:
        for lint in finder(trace):
            alike = re.sub(r"\d+", "#", lint.text) if lint.kind in _SEVERAL else ""
            group = groups.setdefault((lint.kind, lint.file, lint.line, alike), [])
            if lint not in group:
                group.append(lint)
    return Lints(_merged(group) for group in groups.values())


def _merged(group: list[Lint]) -> Lint:
    first, others = group[0], len(group) - 1
    alike = others and first.kind in _SEVERAL
    return replace(first, text=f"{first.text} (and {others} more like it)") if alike else first
