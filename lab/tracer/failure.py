"""Where an exception came from: the place in someone's own code, and the recorded operation there."""

from __future__ import annotations

from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from lab.tracer.record import FOREIGN, Op, Scope


@dataclass
class Failure:
    """Where an exception came from: a place in someone's own code, and the recorded operation there, if it was one."""

    scope: Scope  # the innermost recorded call of own code
    frame: FrameType
    lasti: int
    line: int
    item: Op | Scope | None  # the operation, or the call of one of PyTorch's modules, that failed at that place
    op: Op | None  # the operation itself, perhaps inside that module


def find_failure(calls: list[Scope], traceback: TracebackType | None, recorded: Any) -> Failure | None:
    """Follows the traceback down to the innermost frame of someone's own code inside the model's call."""
    failed = failed_scopes(calls)
    if not failed:
        return None
    inside, found = False, None
    codes = {id(scope.code) for scope in failed}
    while traceback is not None:
        frame = traceback.tb_frame
        inside = inside or id(frame.f_code) in codes
        if inside and not is_foreign(frame.f_code.co_filename):
            found = (frame, traceback.tb_lasti, traceback.tb_lineno)
        traceback = traceback.tb_next
    if found is None:
        return None
    frame, lasti, line = found
    own = [scope for scope in failed if scope.code is frame.f_code] or [
        s for s in failed if not is_foreign(s.code.co_filename)
    ]
    scope = own[-1] if own else failed[-1]
    op = recorded[0] if recorded and isinstance(recorded[0], Op) else None
    item = climb(op) if op is not None else None
    if item is None or item.parent is not scope:  # something else failed after the last operation that did
        item = op = None
    return Failure(scope, frame, lasti, line, item, op)


def failed_scopes(calls: list[Scope]) -> list[Scope]:
    """The chain of calls that were open when the exception passed, outermost first."""
    chain: list[Scope] = []
    level: list = list(calls)
    while level:
        last = next((item for item in reversed(level) if isinstance(item, Scope) and item.failed), None)
        if last is None:
            break
        chain.append(last)
        level = last.children
    return chain


def is_foreign(file: str) -> bool:
    return file.startswith((*FOREIGN, "<"))


def climb(item: Op | Scope) -> Op | Scope:
    """The operation, or the call of a module of PyTorch's around it, as it stands in someone's own code."""
    while item.parent is not None and item.parent.parent is not None and is_foreign(item.parent.code.co_filename):
        item = item.parent
    return item
