"""What blocks with a state need: a recurrence over a whole row at once, and the past while decoding.

A state h runs along a row and forgets at the start of each document. In training the whole row is there, and the
recurrence is computed for all positions in about log2(T) steps (`linear_scan`). While decoding, a call brings one token
or a few, and `recall` gives what the call before left behind (`keep`). `earlier` does the same for blocks that look
back a fixed number of tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model import Context
from tools import log_io, see_through


@log_io
def linear_scan(a: Tensor, b: Tensor, start: Tensor | None = None) -> Tensor:
    """h_t = a_t * h_(t-1) + b_t for all t at once: b (B, T, ...) -> h (B, T, ...), with h before the row = `start`.

    a: (B, T, ...), as b or with sizes of 1 where b's channels share a factor. start: (B, ...); None: zeros.

    Two steps in a row are again one step of the same kind:
        h_2 = a_2 (a_1 h_0 + b_1) + b_2 = (a_2 a_1) h_0 + (a_2 b_1 + b_2).
    So neighbours are joined to pairs, the row of pairs, half as long, is solved in the same way, which gives h after
    every second step, and one more step gives h in between. That is 2 log2(T) operations one after the other, and in
    all about three times the arithmetic of a plain loop. Only products of neighbouring factors occur, never a quotient:
    where |a| <= 1 nothing can overflow, and a = 0 forgets exactly. Works for real and complex numbers of any precision.

    Source: Blelloch 1990, "Prefix sums and their applications", CMU-CS-90-190, section 1.4.1.
    """
    if start is not None:
        b = torch.cat((b[:, :1] + a[:, :1] * start[:, None], b[:, 1:]), dim=1)
    T = b.shape[1]
    missing = (1 << (T - 1).bit_length()) - T  # steps up to the next power of two; they come after all the others
    return _scan_pairs(_lengthen(a, missing), _lengthen(b, missing))[:, :T]


@see_through
def _scan_pairs(a: Tensor, b: Tensor) -> Tensor:
    """`linear_scan` for a power of two."""
    if b.shape[1] == 1:
        return b
    a_first, a_second = a.unflatten(1, (-1, 2)).unbind(2)  # each (B, T/2, ...)
    b_first, b_second = b.unflatten(1, (-1, 2)).unbind(2)
    after_second = _scan_pairs(a_second * a_first, a_second * b_first + b_second)
    before_first = torch.cat((torch.zeros_like(b[:, :1]), after_second[:, :-1]), dim=1)
    after_first = a_first * before_first + b_first
    return torch.stack((after_first, after_second), dim=2).flatten(1, 2)


@see_through
def _lengthen(x: Tensor, steps: int) -> Tensor:
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, steps)) if steps else x


# ---------------------------------------------------------------- documents and decoding


def document_starts(x: Tensor, ctx: Context) -> Tensor:
    """Where the state is empty: bool (B, T) or (1, T), true at position 0 and where a packed row's segment changes.

    Raises ValueError for segments while decoding: there each row is one document.
    """
    starts = (ctx.positions == 0).view(-1, x.shape[1])
    if ctx.segments is None:
        return starts
    if ctx.cache is not None:
        raise ValueError("segments are given while decoding: decode the documents of a packed row as rows of their own")
    return starts | F.pad(ctx.segments[:, 1:] != ctx.segments[:, :-1], (1, 0))


def recall(x: Tensor, ctx: Context, count: int) -> Tensor:
    """What the `count` positions before x (B, T, ...) have left: (B, count, ...), zeros where there was nothing.

    Raises ValueError where the row was rewound to before the last call: those states are gone.
    """
    if ctx.cache is None or ctx.slot not in ctx.cache:
        return x.new_zeros(len(x), count, *x.shape[2:])
    began, kept = ctx.cache[ctx.slot]  # (B,), and (B, count + T of the last call, ...)
    back = ctx.positions[:, 0] - began  # (B,): how many tokens of the last call still count
    if not torch.compiler.is_compiling() and back.device.type == "cpu" and back.min() < 0:
        raise ValueError(
            f"the cache was rewound by more than the last call's {kept.shape[1] - count} tokens, and a recurrent "
            "block has kept no state from before: start again with a new context"
        )
    rows = torch.arange(len(x), device=x.device)[:, None]
    return kept[rows, back[:, None] + torch.arange(count, device=x.device)]


def keep(past: Tensor, x: Tensor, ctx: Context) -> None:
    """Keeps what the next call's `recall` needs: the `past` (B, count, ...) it gave to this call, and x (B, T, ...).

    Rows of different length are padded, and rewound to their own ends before the next call (`Context.rewind`): only
    then is it known which of the T values a row goes on from. So all are kept until then; in the usual call with one
    token these are count + 1.
    """
    if ctx.cache is not None:
        ctx.cache[ctx.slot] = (ctx.positions[:, 0], torch.cat((past, x), dim=1))


def earlier(x: Tensor, ctx: Context, width: int) -> list[Tensor]:
    """[x_t, x_(t-1), ..., x_(t-width+1)], each (B, T, D) as x, with zeros before the document's start."""
    past = recall(x, ctx, width - 1)  # (B, width - 1, D)
    keep(past, x, ctx)
    T, row = x.shape[1], torch.cat((past, x), dim=1)
    shifted = [row[:, start : start + T] for start in range(width - 1, -1, -1)]
    if ctx.segments is None:
        return shifted
    index = torch.arange(T, device=x.device)
    age = index - torch.where(document_starts(x, ctx), index, 0).cummax(dim=1).values  # (B, T): tokens before it
    return [value * (age >= k)[..., None] for k, value in enumerate(shifted)]
