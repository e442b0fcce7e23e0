"""Writing text with a trained model: one sampler for notebook, script and terminal.

    model, tok, cfg = load_model("0.5m_5foot11_and_skinnyfat")
    generate(model, tok, "Once upon a time")                       # the prompt and how it goes on, one string
    generate(model, tok, ["The cat", "A small boat"], temperature=0)      # several at once
    for piece in generate(model, tok, "Lily", stream=True): print(piece, end="", flush=True)

    python inference.py 0.5m_5foot11_and_skinnyfat "Once upon a time" --temperature 0.7

How a token is chosen, in this order:
    1. temperature   logits / temperature: below 1 sharpens the distribution, 0 always takes the likeliest token
    2. top_k         only the k likeliest tokens stay (and those that tie with the k-th)
    3. top_p         of these, the fewest whose probabilities add up to p or more (nucleus sampling)
    4. min_p         of these, the ones at least min_p times as probable as the likeliest
    5. what is left is scaled to add up to 1, and one random number picks from it

What the model sees. A text starts with BOS, which the tokenizer puts before the prompt. Keys and values of the tokens
seen stay in a cache, so that each step computes one position only. When the window is full (max_seq_len tokens, and one
more to come), its last max_seq_len // 2 tokens become the new window and the cache is refilled with them, at positions
from 0: from there on the model continues that half as if nothing had stood before it, not even BOS. A prompt that is
longer than max_seq_len is cut by the same rule, with a warning.

Who computes. Three ways lead to the same text, and `generate` takes the quickest that knows the model's blocks: a
program compiled from lab/compiled_decoder.cpp, plain PyTorch with fewer operations (lab/folded_decoder.py), and the
model itself, which always can. The first two are compared with the model before they write anything.
"""

import codecs
import math
import os
import random
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import tyro
from torch import Tensor

from model import GPT, Context
from tokenizer import Tokenizer

if TYPE_CHECKING:
    from lab.folded_decoder import FoldedDecoder

# ---------------------------------------------------------------- the sampler


def generate(
    model: GPT,
    tok: Tokenizer,
    prompt: str | list[str],
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    stream: bool = False,
    use_cache: bool = True,
    compiled: bool | Literal["auto"] = "auto",
) -> str | list[str] | Iterator[str]:
    """The prompt and its continuation, up to the end-of-text token or `max_new_tokens` more tokens.

    One prompt gives one str, a list of prompts a list. Prompts of a list don't influence one another: under greedy
    decoding (temperature=0) each text is what its prompt gives alone, up to float rounding in near ties; with a seed,
    text i is what its prompt gives alone with seed + i (so that the same prompt several times gives different texts).
    An empty prompt starts from BOS.

    seed: makes the result repeatable; None draws afresh. PyTorch's and Python's own random states are left alone.
    stream: return an iterator of text pieces instead (one prompt only). The first piece is the prompt; a character is
        given only when all its bytes are there; joined, the pieces are the text that stream=False returns.
    use_cache: False computes every position again for each token: same text, slowly, for comparison.
    compiled: "auto" has a compiled copy of the model write where that is possible, which gives the same text (up to
        float rounding in near ties) many times sooner: on a CPU, in fp32, with the everyday blocks, and with a C++
        compiler, which takes some seconds once per machine. True: ValueError where it isn't; False: PyTorch only.

    The model is in eval mode meanwhile (a stream: until it ends or is closed) and then back in its earlier mode.

    Raises: TypeError, ValueError for a prompt or setting that can't be; FloatingPointError if the model's logits hold
    NaN or an infinity.
    Source: top_k: Fan et al. 2018, arXiv 1805.04833; top_p: Holtzman et al. 2020, arXiv 1904.09751, section 3.1;
    min_p: Nguyen et al. 2024, arXiv 2407.01082.
    """
    prompts = _check_prompts(prompt, stream)
    _check_tokenizer(model, tok)
    _check_integer("max_new_tokens", max_new_tokens, 0)
    choose = Choice(temperature, top_k, top_p, min_p)
    generators = _generators(seed, len(prompts))
    rows = _prompt_tokens(model, tok, prompts)
    settings = dict(max_new_tokens=max_new_tokens, stop_id=tok.eos_id)
    if _can_compile(model, compiled, use_cache):
        ids = compiled_new_tokens(model, rows, choose, generators, **settings, stream=stream, must=compiled is True)
    else:
        ids = new_tokens(model, rows, choose, generators, **settings, use_cache=use_cache, folded=True)
    if stream:
        return _pieces(tok, prompt, (step[0] for step in ids))
    steps = list(ids)
    texts = [text + _text(tok, [step[i] for step in steps]) for i, text in enumerate(prompts)]
    return texts[0] if isinstance(prompt, str) else texts


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen from its logits. Raises ValueError for settings out of range."""

    temperature: float = 0.8  # 0: always the likeliest; 1: the model's own distribution; above: flatter
    top_k: int | None = None  # keep the k likeliest tokens
    top_p: float | None = None  # keep the likeliest tokens that together have this probability
    min_p: float | None = None  # keep tokens at least this many times as probable as the likeliest

    def __post_init__(self):
        _check_number("temperature", self.temperature, "a finite number, 0 (greedy) or more", lambda t: t >= 0)
        if self.top_k is not None:
            _check_integer("top_k", self.top_k, 1, " (None: no limit)")
        if self.top_p is not None:
            _check_number("top_p", self.top_p, "above 0 and at most 1 (None: no limit)", lambda p: 0 < p <= 1)
        if self.min_p is not None:
            _check_number("min_p", self.min_p, "from 0 to 1 (None: no limit)", lambda p: 0 <= p <= 1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What is sampled from: logits (..., V) -> probabilities (..., V), float64, zero for tokens filtered out."""
        weights = self._weights(logits)
        return weights / weights.sum(-1, keepdim=True)

    def _weights(self, logits: Tensor) -> Tensor:
        """The probabilities before they are made to add up to 1."""
        logits = logits.double()
        if self.temperature == 0:
            likeliest = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits).scatter(-1, likeliest, 1.0)
        # The largest becomes 0 before dividing, so that no temperature is small enough to overflow.
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            lowest = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < lowest, -math.inf)
        probs = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            probs = _nucleus(probs, self.top_p)
        if self.min_p is not None:
            probs = probs.where(probs >= self.min_p * probs.amax(-1, keepdim=True), 0.0)
        return probs

    def pick(self, logits: Tensor, draws: list[float]) -> list[int]:
        """One token id per row: logits (B, V), and for each row a random number in [0, 1).

        The tokens share a line in order of their ids, each as long as it is probable; the random number says at which
        part of the line's length to look, and the token there is picked.
        """
        if self.temperature == 0:
            return logits.argmax(-1).tolist()
        ends = self._weights(logits).cumsum(-1)  # (B, V)
        points = torch.tensor(draws, dtype=ends.dtype)[:, None] * ends[:, -1:]  # (B, 1)
        return torch.searchsorted(ends, points, right=True)[:, 0].tolist()


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """probs (..., V) with zeros outside the smallest set of likeliest tokens that adds up to top_p or more."""
    num_tokens = probs.shape[-1]
    for size in (min(128, num_tokens), num_tokens):  # the likeliest 128 are mostly enough, which saves a full sort
        values, ids = probs.topk(size)
        total = values.cumsum(-1)
        if (total[..., -1] >= top_p).all():
            break
    kept = values.where(total - values < top_p, 0.0)  # what stands before a token has not reached top_p yet
    return torch.zeros_like(probs).scatter(-1, ids, kept)


@dataclass
class _Row:
    """One text being written."""

    index: int  # which prompt it continues
    window: list[int]  # the tokens that the model sees
    generator: random.Random
    ended: bool = False


@torch.inference_mode()
def new_tokens(
    model: GPT,
    prompts: list[list[int]],
    choose: Choice,
    generators: list[random.Random],
    *,
    max_new_tokens: int,
    stop_id: int | None = None,
    use_cache: bool = True,
    folded: bool = False,
) -> Iterator[list[int | None]]:
    """Continues token lists, all at once: yields, step after step, the new id of each prompt.

    A row that picks `stop_id` has ended: it yields None from that step on, and when all have, the iterator stops.
    Ended rows stay in the batch until the cache is refilled; rows whose window is full are cut to its last half (see
    the top of this file), and then all rows are refilled together, since only the blocks know what a cache holds.

    folded: after the cache is filled, lab/folded_decoder.py makes the steps where it can: the same sums, by fewer
        operations. Its first logits are compared with the model's; should they differ, the model goes on by itself.
    """
    rows = [_Row(i, window(ids, model), generators[i]) for i, ids in enumerate(prompts)]
    ctx = None
    with eval_mode(model):
        decoder = _folded(model) if folded and use_cache else None
        for _ in range(max_new_tokens if rows else 0):
            if ctx is None or ctx.span == model.cfg.max_seq_len:
                rows = [row for row in rows if not row.ended]
                for row in rows:
                    row.window = window(row.window, model)
                logits, ctx = last_logits(model, [row.window for row in rows], decode=use_cache)
                if decoder is not None and not _takes_over(decoder, ctx, rows, logits):
                    decoder = None
            elif decoder is not None:
                logits = decoder.step([row.window[-1] for row in rows])
                ctx.span += 1
            else:
                logits = model(_as_tensor([row.window[-1:] for row in rows], model), ctx)[:, -1]  # (B, V)
            ids = choose.pick(_checked(logits, rows), [row.generator.random() for row in rows])
            step: list[int | None] = [None] * len(prompts)
            for row, new_id in zip(rows, ids, strict=True):
                row.window.append(new_id)
                row.ended = row.ended or new_id == stop_id
                step[row.index] = None if row.ended else new_id
            if all(row.ended for row in rows):
                return
            yield step


def _folded(model: GPT) -> "FoldedDecoder | None":
    from lab.folded_decoder import FoldedDecoder, why_not_folded

    return None if why_not_folded(model) else FoldedDecoder(model)


def _takes_over(decoder: "FoldedDecoder", ctx: Context, rows: list[_Row], logits: Tensor) -> bool:
    """Shows a filled cache to the decoder and has it repeat the last tokens: whether its logits are the model's."""
    decoder.start(ctx)
    return _agree("folded", decoder.step([row.window[-1] for row in rows]), _checked(logits, rows))


def _agree(name: str, found: Tensor, expected: Tensor) -> bool:
    """Whether two ways to the same logits differ by rounding only; a warning if not."""
    difference = ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
    agree = difference <= 1e-3
    if not agree:
        warnings.warn(
            f"the {name} decoder's logits differ from the model's by {difference:.1g} of the largest: was a block "
            "changed? The model itself goes on, which takes longer",
            stacklevel=1,  # counted as one place, so that Python shows it once
        )
    return agree


def compiled_new_tokens(
    model: GPT,
    prompts: list[list[int]],
    choose: Choice,
    generators: list[random.Random],
    *,
    max_new_tokens: int,
    stop_id: int | None = None,
    stream: bool = False,
    must: bool = False,
) -> Iterator[list[int | None]]:
    """As `new_tokens`, by a compiled copy of the model; with `stream`, each step is made only when it is asked for.

    The copy knows what the blocks of model.py did when it was written. So its logits for the first prompt are compared
    with the model's before it may write: should they differ, the model itself writes, with a warning, or, where the
    copy `must`, ValueError is raised.
    """
    from lab.compiled_decoder import STEPS, CompiledDecoder

    if not prompts:
        return
    settings = dict(max_new_tokens=max_new_tokens, stop_id=stop_id)
    with eval_mode(model):
        decoder = CompiledDecoder(model, prompts)
        first = window(prompts[0], model)
        with torch.inference_mode():
            expected = _checked(last_logits(model, [first])[0], [_Row(0, first, generators[0])])
        if _agree("compiled", decoder.first_logits(), expected[0]):
            yield from decoder.new_tokens(choose, generators, **settings, at_once=1 if stream else STEPS)
            return
    if must:
        raise ValueError("compiled=True can't be: its logits differ from the model's; was a block changed?")
    yield from new_tokens(model, prompts, choose, generators, **settings)


def _can_compile(model: GPT, compiled: bool | str, use_cache: bool) -> bool:
    """Whether a compiled copy may write. Raises ValueError where `compiled=True` asks for one that can't be."""
    if compiled not in (True, False, "auto"):
        raise ValueError(f"compiled={compiled!r} must be True, False or 'auto'")
    if compiled is False:
        return False
    from lab.compile import CompileError
    from lab.compiled_decoder import library, why_not

    reason = why_not(model) if use_cache else "use_cache=False"
    if not reason:
        try:
            library()
        except CompileError as error:
            reason = str(error)
            note = f"{reason}: the model itself writes, which takes longer; compiled=False asks for that"
            warnings.warn(note, stacklevel=1)  # counted as one place, so that Python shows it once
    if reason and compiled is True:
        raise ValueError(f"compiled=True can't be: {reason}; with compiled='auto' the model itself writes then")
    return not reason


def last_logits(model: GPT, rows: list[list[int]], *, decode: bool = False) -> tuple[Tensor, Context | None]:
    """Logits (B, V) after the last token of each row, and, with decode=True, the filled cache to go on from.

    Rows may differ in length: they are padded on the right, where causal attention can't see it, and then the cache is
    rewound, so that the next tokens take the padding's places. The head, V wide, is computed for B positions only.
    """
    lengths = torch.tensor([len(row) for row in rows], device=_device(model))
    longest = max(map(len, rows))
    tokens = _as_tensor([row + row[-1:] * (longest - len(row)) for row in rows], model)  # (B, T)
    ctx = model.context(tokens, decode=True) if decode else None
    features = model.features(tokens, ctx)  # (B, T, D)
    if ctx is not None:
        ctx.rewind(lengths)
    last = features[torch.arange(len(rows), device=lengths.device), lengths - 1]  # (B, D)
    return model.head(last), ctx


def window(ids: list[int], model: GPT) -> list[int]:
    """What the model sees of a token list: all of it, or its last max_seq_len // 2 tokens if it doesn't fit."""
    limit = model.cfg.max_seq_len
    return list(ids) if len(ids) <= limit else ids[-max(1, limit // 2) :]


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module is back in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# ---------------------------------------------------------------- prompts in, text out


def _prompt_tokens(model: GPT, tok: Tokenizer, prompts: list[str]) -> list[list[int]]:
    """The ids of each prompt, BOS first. Warns of characters unknown to the tokenizer and of prompts too long."""
    rows = [tok.encode(text, bos=True) for text in prompts]
    for text, ids in zip(prompts, rows, strict=True):
        if unknown := tok.unknown_count(text):
            warnings.warn(
                f"the tokenizer has no token for {unknown} of the prompt's {len(text)} characters: the model reads "
                "them as unknown; a tokenizer of 512 or more pieces can spell every character",
                stacklevel=3,
            )
        if (seen := len(window(ids, model))) < len(ids):
            warnings.warn(
                f"the prompt has {len(ids)} tokens, more than max_seq_len={model.cfg.max_seq_len}: "
                f"the model sees the last {seen} of them only",
                stacklevel=3,
            )
    return rows


def next_token_probabilities(model: GPT, tok: Tokenizer, prompt: str, k: int = 10) -> list[tuple[str, float]]:
    """The k likeliest next tokens, (piece as shown, probability), likeliest first, before any filter.

    Raises: as `generate`.
    """
    _check_integer("k", k, 1)
    probs = Choice(temperature=1.0).probabilities(next_token_logits(model, tok, prompt))
    values, ids = probs.topk(min(k, len(probs)))
    return [(tok.piece(i), p) for i, p in zip(ids.tolist(), values.tolist(), strict=True)]


@torch.inference_mode()
def next_token_logits(model: GPT, tok: Tokenizer, prompt: str) -> Tensor:
    """The model's logits for what follows the prompt: (V,) on the CPU. Raises: as `generate`."""
    _check_prompts(prompt, stream=True)
    _check_tokenizer(model, tok)
    row = _Row(0, window(_prompt_tokens(model, tok, [prompt])[0], model), random.Random())
    with eval_mode(model):
        return _checked(last_logits(model, [row.window])[0], [row])[0]


def _pieces(tok: Tokenizer, prompt: str, ids: Iterable[int]) -> Iterator[str]:
    """The prompt, then the text of the ids as soon as its characters are complete; never an empty piece."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    if prompt:
        yield prompt
    for i in ids:
        if piece := decoder.decode(tok.token_bytes(i)):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def _text(tok: Tokenizer, ids: list[int | None]) -> str:
    return b"".join(tok.token_bytes(i) for i in ids if i is not None).decode("utf-8", errors="replace")


def _generators(seed: int | None, count: int) -> list[random.Random]:
    """A random number generator per row, of Python's own kind: the same numbers on every device and platform."""
    if seed is None:
        return [random.Random() for _ in range(count)]
    _check_integer("seed", seed, 0, " (None: a new one each time)")
    return [random.Random(int(seed) + i) for i in range(count)]


def _device(model: GPT) -> torch.device:
    return next(model.parameters()).device


def _as_tensor(rows: list[list[int]], model: GPT) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=_device(model))


# ---------------------------------------------------------------- checks


def _check_prompts(prompt: str | list[str], stream: bool) -> list[str]:
    """The prompts as a list, each checked to be a str."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list | tuple):
        raise TypeError(f"prompt is of type {type(prompt).__name__}; it must be a str or a list of str")
    if stream:
        raise ValueError(f"stream=True takes one prompt as a str, not a list of {len(prompt)}: call it once for each")
    for i, text in enumerate(prompt):
        if not isinstance(text, str):
            raise TypeError(f"prompt[{i}] is of type {type(text).__name__}; it must be a str")
    return list(prompt)


def _check_tokenizer(model: GPT, tok: Tokenizer) -> None:
    if tok.vocab_size != model.cfg.vocab_size:
        raise ValueError(
            f"the tokenizer's vocab_size={tok.vocab_size} differs from the model's vocab_size={model.cfg.vocab_size}: "
            "use the tokenizer that the model was trained with, as load_model returns it"
        )


def _check_integer(name: str, value: int, low: int, note: str = "") -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is of type {type(value).__name__}; it must be a whole number{note}")
    if value < low:
        raise ValueError(f"{name}={value} must be {low} or more{note}")


def _check_number(name: str, value: float, rule: str, fits) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is of type {type(value).__name__}; it must be a number")
    if not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{name}={value} must be {rule}")


def _checked(logits: Tensor, rows: list[_Row]) -> Tensor:
    """The logits (B, V) as float32 on the CPU. Raises FloatingPointError where a row holds NaN or an infinity."""
    logits = logits.float().cpu()
    if not all(map(math.isfinite, logits.aminmax())):  # one operation; a NaN anywhere makes both of them NaN
        bad = next(i for i, row in enumerate(logits) if not torch.isfinite(row).all())
        raise non_finite_logits(logits[bad], rows[bad].index, len(rows[bad].window))
    return logits


def non_finite_logits(logits: Tensor, prompt: int, seen: int) -> FloatingPointError:
    """The error to raise for logits (V,), not all of them finite, after `seen` tokens of a prompt."""
    value = logits[~torch.isfinite(logits)][0].item()
    return FloatingPointError(
        f"the model's logits hold {value} for prompt {prompt} after {seen} tokens: "
        "its weights are damaged or its training diverged; load an earlier checkpoint or train again"
    )


# ---------------------------------------------------------------- from a terminal


def write(
    name: Annotated[str, tyro.conf.arg(metavar="NAME")],
    prompt: Annotated[str, tyro.conf.arg(metavar="PROMPT")],
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    device: Literal["cpu", "cuda", "mps"] = "cpu",
    compiled: Literal["auto", "yes", "no"] = "auto",
) -> None:
    """Continue a prompt with a saved model, token by token, up to the end of the text.

    Args:
        name: a folder of trained_models/, or a path to such a folder
        prompt: the text to continue; "" starts from nothing
        max_new_tokens: stop after this many tokens if the text has not ended before
        temperature: 0 always takes the likeliest token; higher is more varied and less coherent
        top_k: choose among the k likeliest tokens only
        top_p: choose among the likeliest tokens that together have this probability
        min_p: choose among tokens at least this many times as probable as the likeliest
        seed: the same number gives the same text again
        device: where to compute; models of this size are quick enough on a CPU
        compiled: whether a compiled copy of the model writes: the same text, sooner; auto: where that is possible
    """
    from tools import load_model

    if device != "cpu" and not getattr(torch, device).is_available():
        raise ValueError(f"device={device!r} is not available here; leave it out to use the CPU")
    model, tok, _ = load_model(name, device=device)
    pieces = generate(
        model, tok, prompt, max_new_tokens=max_new_tokens, temperature=temperature,
        top_k=top_k, top_p=top_p, min_p=min_p, seed=seed, stream=True,
        compiled={"auto": "auto", "yes": True, "no": False}[compiled],
    )  # fmt: skip
    start = time.perf_counter()
    for piece in pieces:
        print(piece, end="", flush=True)
    print(f"\n[{time.perf_counter() - start:.1f} s]", file=sys.stderr)


def main() -> None:
    """The command line: a user's mistake ends in one line, not in a traceback."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that can't show a character shows "?" for it
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: print(f"note: {message}", file=sys.stderr)
        try:
            tyro.cli(write, config=(tyro.conf.PositionalRequiredArgs,))
        except BrokenPipeError:  # the reader has seen enough, as `head` does; nothing is left to flush into
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (ValueError, TypeError, OSError, FloatingPointError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("\nstopped")


if __name__ == "__main__":
    main()
