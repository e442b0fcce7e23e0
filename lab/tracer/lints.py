"""What looks like a mistake though it ran.

unused        a result that is never used: a dropout that is called and discarded, a name that is never read
flag          a flag such as `training` or `causal` that a function had and did not hand on
contraction   a matrix product over dimensions with different names
broadcast     an elementwise operation that stretches both of its operands, which nobody asked for
coincidence   an operation that works only because two sizes happen to be equal
hidden        a tensor, parameter or module in a plain attribute, list or dict, where PyTorch does not see it
uncalled      a registered submodule that is never called
"""

from __future__ import annotations

import html
from typing import Any

from lab.tracer.lint_base import Lint
from lab.tracer.lint_code import flags, unused
from lab.tracer.lint_modules import hidden, uncalled
from lab.tracer.lint_shapes import broadcasts, coincidences, contractions

_FINDERS = (unused, flags, coincidences, contractions, broadcasts, hidden, uncalled)


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
            same = ("contraction" if lint.kind == "coincidence" else lint.kind, lint.file, lint.line)
            key = (*same, lint.text) if lint.kind in ("hidden", "uncalled", "flag") else same
            found.setdefault(key, lint)
    return Lints(found.values())
