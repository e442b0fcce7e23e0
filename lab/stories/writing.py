"""Writing: several completions of each prompt by a model at hand, the same whatever the batch."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab.stories.words import END

MANY = 1_000_000  # seeds of completion number j begin at j * MANY, so that more prompts change no seed


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn. It is kept with every result: figures under other settings can't be compared."""

    completions: int = 3  # of each prompt
    max_new_tokens: int = 200  # a text that has not ended by then is cut, which lowers `ends`
    temperature: float = 0.8  # 0: always the likeliest token, which repeats itself; 1: the model's own distribution
    top_p: float | None = 0.95  # only the likeliest tokens that together have this probability; None: all
    seed: int = 0  # completion j of prompt i is drawn with seed + j * 1,000,000 + i, whatever the batch
    paragraph_break: str = "\n"  # put for the line breaks in a prompt; the hub's TinyStories has a blank line, "\n\n"

    def __post_init__(self):
        for name in ("completions", "max_new_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, at least 1")


def write_stories(
    model,
    tok,
    prompts: Sequence[str],
    decoding: Decoding | None = None,
    *,
    have: Sequence[dict] = (),
    batch_size: int = 64,
    progress: bool = False,
) -> Iterator[dict]:
    """Yields each completion: {"prompt": its number, "number": of the completion, "text": what follows the prompt,
    "ended": whether the model ended it}.

    have: completions that exist already; they are not written again.  batch_size: changes time and no text.
    Raises: ValueError for a prompt that the model or its tokenizer cannot hold, or a tokenizer without EOS.
    """
    from inference import generate

    if isinstance(prompts, str):
        raise TypeError("prompts='...' is a single str; give a list of them: [prompt]")
    decoding = decoding or Decoding()
    prompts = [with_breaks(prompt, decoding) for prompt in prompts]
    _check_prompts(model, tok, prompts)
    known = {(story["prompt"], story["number"]) for story in have}
    settings = dict(max_new_tokens=decoding.max_new_tokens, temperature=decoding.temperature, top_p=decoding.top_p)
    with _bar(len(prompts) * decoding.completions, progress) as bar:
        for number in range(decoding.completions):
            for first in range(0, len(prompts), batch_size):
                batch = range(first, min(first + batch_size, len(prompts)))
                bar.update(len(batch))
                if all((i, number) in known for i in batch):
                    continue
                seed = decoding.seed + number * MANY + first  # generate gives text i of a batch seed + i
                texts = generate(model, _EndSpelt(tok), [prompts[i] for i in batch], seed=seed, **settings)
                for i, text in zip(batch, texts):
                    completion, end, _ = text[len(prompts[i]) :].partition(END)
                    if (i, number) not in known:
                        yield {"prompt": i, "number": number, "text": completion, "ended": bool(end)}


def with_breaks(prompt: str, decoding: Decoding) -> str:
    """The prompt as the model is given it: with `paragraph_break` for its line breaks."""
    return re.sub(r"\s*\n\s*", decoding.paragraph_break, prompt)


def _check_prompts(model, tok, prompts: list[str]) -> None:
    if len(prompts) < 2:
        raise ValueError(f"prompts: {len(prompts)} given; at least 2 are needed, so that their spread can be seen")
    if tok.eos_id is None or tok.eos_id < 0:
        raise ValueError("tok has no end-of-text token (eos_id), so no story of this model can end: give it one")
    for i, prompt in enumerate(prompts):
        if unknown := tok.unknown_count(prompt):
            raise ValueError(
                f"prompts[{i}]: the tokenizer has no token for {unknown} of its {len(prompt)} characters "
                f"({prompt[:60]!r}): leave it out, or take prompts that this model can read, such as 'storyworld'"
            )
        length = len(tok.encode(prompt, bos=True))
        if length > model.cfg.max_seq_len:
            raise ValueError(
                f"prompts[{i}] has {length} tokens, more than max_seq_len={model.cfg.max_seq_len}: shorten it or "
                f"leave it out ({prompt[:60]!r})"
            )


class _EndSpelt:
    """A tokenizer whose end-of-text does not stop `generate` and is spelt END.

    So a text that the model ended can be told from one that ran out of tokens. What is written after END is dropped.
    """

    eos_id = None

    def __init__(self, tok):
        self._tok = tok

    def __getattr__(self, name: str):
        return getattr(self._tok, name)

    def token_bytes(self, i: int) -> bytes:
        return END.encode() if i == self._tok.eos_id else self._tok.token_bytes(i)


def _bar(count: int, progress: bool):
    from tqdm import tqdm

    return tqdm(total=count, unit=" stories", desc="writing", disable=not progress, leave=False)
