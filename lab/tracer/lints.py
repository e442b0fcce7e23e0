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
from typing import Any

from lab.tracer.lint_base import Lint
from lab.tracer.lint_code import flags, unused
from lab.tracer.lint_modules import hidden, uncalled
from lab.tracer.lint_shapes import broadcasts, coincidences

_FINDERS = (unused, flags, coincidences, broadcasts, hidden, uncalled)


class Lints(list):
    """Lints; shown one a line."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self)) if self else "no lints"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


def find(trace: Any) -> Lints:
    """All lints of a trace, each place once for each kind, in the order of the list above."""
    found: dict[tuple, Lint] = {}
    for finder in _FINDERS:
        for lint in finder(trace):
            place = (lint.kind, lint.file, lint.line)
            several = lint.kind in ("hidden", "uncalled", "flag")  # of one line
            found.setdefault((*place, lint.text) if several else place, lint)
    return Lints(found.values())
