"""What a model writes: several completions of each of many prompts, measured without a judge.

    results = stories_of(["a", "b"], "evaluation_prompts.yaml")    # saved models with their seeds, or "storyworld"
    table(results);  plot_stories(results);  samples(results)
    evaluate_stories(model, tok, prompts, training_text=documents)  # any model

    python -m lab.stories NAME ... --prompts evaluation_prompts.yaml --save

What is measured, each as a mean over prompts with its 95 % interval (prompts drawn anew, bootstrap):

    distinct_1 .. distinct_4   how varied the words of all completions of a prompt are: `distinct`
    repetition                 share of 4-word runs that stood in the same text before: `repetition`
    ends                       share of texts that end by themselves, and with a whole sentence: `ends_properly`
    words                      words in a text
    overlap_words, overlap_characters    longest piece that stands in the training text, too: `longest_overlaps`

None of these says whether a story is good (lab/judge.py asks for that); each shows one way to be bad. Beside them stand
the same figures for real stories that no model saw, given their own beginnings: nobody should be far from these.

The TinyStories paper (Eldan & Li 2023, arXiv 2305.07759) published 44 prompts, of each of which it draws 10 completions
at temperature 1. "storyworld", which needs no file, takes as many openings of the built-in stories.
"""

import hashlib
import json
import math
import os
import re
import reprlib
import sys
import textwrap
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lab.compare_models import draw_documents, find_runs, widen
from lab.data import Source, cache_folder
from lab.files import clear_write_errors, shown
from lab.intervals import wilson
from lab.kept import documents_fingerprint, find_records, kept, matches, read_section, training_source, weights_of
from lab.plots import NOTE, PALETTE, STYLE, Run, read_run
from lab.records import checked_text, json_records, lines
from lab.saving import load_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

PROTOCOL = 1  # rises whenever the same model and prompts would get other figures
METRICS = {  # key -> (heading, how a value is written)
    "distinct_1": ("distinct words", "{:.2f}"),
    "distinct_2": ("distinct 2-grams", "{:.2f}"),
    "distinct_3": ("distinct 3-grams", "{:.2f}"),
    "distinct_4": ("distinct 4-grams", "{:.2f}"),
    "repetition": ("repeated 4-grams", "{:.1%}"),
    "ends": ("ends properly", "{:.0%}"),
    "words": ("words", "{:.0f}"),
    "overlap_words": ("longest overlap, words", "{:.1f}"),
    "overlap_characters": ("longest overlap, characters", "{:.0f}"),
}
MANY = 1_000_000  # seeds of completion number j begin at j * MANY, so that more prompts change no seed
STORYWORLD_PROMPTS = 44  # as many as the TinyStories paper has
END = "\U0010ffff"  # a code point that stands in no text
PIECE = 4_000_000  # characters of training text searched at a time, which bounds the memory
TABLE = 2**25  # entries of a table that is quicker to look up in than a sorted list


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


# ---------------------------------------------------------------- prompts


def read_prompts(source: str | Path | Sequence[str]) -> tuple[str, list[str]]:
    """Name and texts of prompts, each checked to be text; spaces and line ends at their ends are dropped.

    source: a .yaml or .json file with a list of strings (as the TinyStories paper's prompts come), a .jsonl file with
    "prompt" in each record, a .txt file with one prompt a line, "storyworld", or a list of strings.
    A space at the end is dropped because tokens begin with the space before their word: it would stand alone.
    Raises: FileNotFoundError; ValueError for an empty, torn or unknown file, saying which prompt is wrong.
    """
    if isinstance(source, str) and source == "storyworld":
        return "storyworld", [_opening(i) for i in range(STORYWORLD_PROMPTS)]
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if path.suffix.lower() not in READERS:
            raise ValueError(
                f"prompts={str(source)!r} must be 'storyworld', a list of strings, or a file that ends in "
                f"{', '.join(READERS)}"
            )
        if not path.is_file():
            raise FileNotFoundError(f"prompts={str(source)!r}: there is no such file; 'storyworld' needs none")
        name, placed = path.name, list(READERS[path.suffix.lower()](path))
    else:
        name, placed = "list", [(f"prompts[{i}]", text) for i, text in enumerate(source)]
    if not placed:
        raise ValueError(f"prompts: {name} holds none; give at least 2, so that their spread can be seen")
    return name, [checked_text(text, "a prompt", place).rstrip() for place, text in placed]


def _opening(index: int) -> str:
    """The first 16 to 32 words of a story of the built-in world, from a seed of its own; cut inside a sentence."""
    from lab.storyworld import story

    text = story(index, seed="prompts")
    return text[: _end_of_word(text, 16 + index % 17)]


def _end_of_word(text: str, count: int) -> int:
    """Where the word with this number (from 1) ends, or the last one; a full stop behind it is left out."""
    found = list(islice(WORD.finditer(text), count))
    return found[-1].end() if found else len(text)


def _from_json(path: Path) -> Iterator[tuple[str, object]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(path)} is torn or no JSON ({error})") from error
    yield from _listed(content, path)


def _from_yaml(path: Path) -> Iterator[tuple[str, object]]:
    import yaml  # comes with `datasets`

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{shown(path)} is torn or no YAML ({' '.join(str(error).split())})") from error
    yield from _listed(content, path)


def _listed(content: object, path: Path) -> Iterator[tuple[str, object]]:
    if not isinstance(content, list):
        raise ValueError(f"{shown(path)} must hold a list of prompts, not a {type(content).__name__}")
    yield from ((f"{shown(path)}, prompt {i}", text) for i, text in enumerate(content))


def _from_jsonl(path: Path) -> Iterator[tuple[str, object]]:
    for place, record in json_records(path):
        if "prompt" not in record:
            raise ValueError(f"{place}: no field 'prompt'; there are {', '.join(map(repr, record)) or 'none'}")
        yield place, record["prompt"]


READERS = {".yaml": _from_yaml, ".yml": _from_yaml, ".json": _from_json, ".jsonl": _from_jsonl, ".txt": lines}


# ---------------------------------------------------------------- writing


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

    decoding = decoding or Decoding()
    prompts = [_broken(prompt, decoding) for prompt in prompts]
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


def _broken(prompt: str, decoding: Decoding) -> str:
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


def _bar(count: int, progress: bool):
    from tqdm import tqdm

    return tqdm(total=count, unit=" stories", desc="writing", disable=not progress, leave=False)


# ---------------------------------------------------------------- what is measured

WORD = re.compile(r"\w+(?:['’]\w+)*")
CLOSED = re.compile(r"""[.!?…]["'”’)\]*]*$""")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits in lower case, apostrophes inside them kept; punctuation is left out."""
    return WORD.findall(text.lower())


def distinct(texts: Sequence[str], n: int) -> float:
    """Number of different n-grams of words / number of all of them, over these texts together; nan if there is none.

    Source: Li et al. 2016, arXiv 1510.03055, section 5.3, for n = 1, 2 and over all replies of a system. Here the texts
    are the completions of one prompt, so that the number of prompts changes nothing. Longer texts have fewer: compare
    where texts are about as long (`words`).
    """
    grams = [gram for text in texts for gram in _ngrams(words_of(text), n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(text: str, n: int = 4) -> float:
    """Share of n-grams of words that stood in the same text before; nan if it has fewer than n words.

    Source: Welleck et al. 2020, arXiv 1908.04319, seq-rep-n, there over tokens: 1 - different n-grams / n-grams. High
    where a model has fallen into a loop.
    """
    grams = _ngrams(words_of(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else math.nan


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n))))


def ends_properly(text: str, ended: bool) -> bool:
    """Whether the model ended the text itself (EOS) and behind . ! ? or …, perhaps followed by quotes or brackets."""
    return ended and bool(CLOSED.search(text.rstrip()))


def longest_overlaps(texts: Sequence[str], documents: Iterable[str]) -> list[tuple[int, int]]:
    """(words, characters) of the longest piece of each text that stands in one of the documents.

    Words as `words_of` has them, so in any case and with any punctuation; characters exactly as they are.
    """
    ids = {word: i for i, word in enumerate(dict.fromkeys(word for text in texts for word in words_of(text)))}
    as_words = [np.array([ids[word] for word in words_of(text)], dtype=np.int64) for text in texts]
    as_characters = [_code_points(text) for text in texts]
    best = np.zeros((2, len(texts)), dtype=np.int64)
    for piece in _pieces(documents):
        words = [ids.get(word, -1) for document in piece for word in (*words_of(document), END)]
        found = (
            longest_shared(as_words, np.array(words, dtype=np.int64)),
            longest_shared(as_characters, _code_points(END.join(piece))),
        )
        best = np.maximum(best, found)
    return [tuple(pair) for pair in best.T.tolist()]


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32).astype(np.int64)


def _pieces(documents: Iterable[str]) -> Iterator[list[str]]:
    """The documents in lists of about PIECE characters."""
    piece, size = [], 0
    for document in documents:
        piece.append(document)
        size += len(document)
        if size >= PIECE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def longest_shared(texts: Sequence[np.ndarray], corpus: np.ndarray) -> np.ndarray:
    """For each of N texts, the length of its longest run of items that the corpus holds: (N,).

    texts, corpus: 1-d arrays of whole numbers.
    For length 1, 2, 3, ...: every start in the texts and in the corpus whose run of that length is in both has a name,
    the same for the same run. A run's name follows from the name of the run that is one shorter and its last item, so
    nothing is hashed or compared at length; starts without a partner are dropped, and few are left after some rounds.
    Source: the naming of Karp, Miller & Rosenberg 1972, doi 10.1145/800152.804905, by one item instead of doubling.
    """
    longest = np.zeros(len(texts), dtype=np.int64)
    flat = np.concatenate([*texts, np.empty(0, dtype=np.int64)])
    if not len(flat) or not len(corpus):
        return longest
    lengths = [len(text) for text in texts]
    owner, end = np.repeat(np.arange(len(texts)), lengths), np.repeat(np.cumsum(lengths), lengths)
    kinds, flat = np.unique(flat, return_inverse=True)
    items = _places(kinds, corpus, math.inf)
    count = 1  # of names given so far
    starts, names = np.arange(len(flat)), np.zeros(len(flat), dtype=np.int64)  # in the texts
    found, found_names = np.arange(len(corpus)), np.zeros(len(corpus), dtype=np.int64)  # in the corpus
    for length in range(1, max(lengths) + 1):
        inside = starts + length <= end[starts]
        starts, names = starts[inside], names[inside]
        runs, names = np.unique(names * len(kinds) + flat[starts + length - 1], return_inverse=True)
        found, found_names = _inside(found, found_names, length, items)
        places = _places(runs, found_names * len(kinds) + items[found + length - 1], count * len(kinds))
        count = len(runs)
        found, found_names = found[places >= 0], places[places >= 0]
        shared = np.zeros(len(runs), dtype=bool)
        shared[found_names] = True
        starts, names = starts[shared[names]], names[shared[names]]
        if not len(starts):
            break
        longest[owner[starts]] = length
    return longest


def _inside(found: np.ndarray, names: np.ndarray, length: int, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The starts whose run of this length ends in the corpus, with an item that the texts have."""
    fits = found + length <= len(items)
    found, names = found[fits], names[fits]
    known = items[found + length - 1] >= 0
    return found[known], names[known]


def _places(known: np.ndarray, values: np.ndarray, bound: float) -> np.ndarray:
    """Where each value stands in the sorted `known`, -1 where it is not there. `bound` is above all of them."""
    if not len(known):
        return np.full(len(values), -1)
    if bound <= min(TABLE, 8 * len(values)):  # looking up in a table is quicker, where making it does not take longer
        table = np.full(bound, -1, dtype=np.int32)
        table[known] = np.arange(len(known))
        return table[values]
    places = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[places] == values, places, -1)


# ---------------------------------------------------------------- from stories to figures


def bootstrap_mean(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, float] | None:
    """{"mean", "low", "high"}: the mean with the interval that drawing the values anew gives (percentile bootstrap).

    nan values are left out; None if fewer than two are left. Deviations are widened by sqrt(n / (n - 1)), because the
    values vary less around their own mean than around the true one. Source: Efron 1979, doi 10.1214/aos/1176344552.
    """
    values = np.array([value for value in values if not math.isnan(value)], dtype=float)
    if len(values) < 2:
        return None
    mean = values.mean()
    deviations = draw_documents(len(values), resamples, seed) @ (values - mean) / len(values) * widen(len(values))
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    return {"mean": float(mean), "low": float(mean + low), "high": float(mean + high)}


def measure(groups: Sequence[Sequence[dict]], overlaps: Sequence[tuple[int, int]] | None) -> dict[str, dict | None]:
    """The METRICS of stories, each {"mean", "low", "high"} over groups, or None where nothing is known.

    groups: the completions of each prompt, as `write_stories` yields them.  overlaps: of each of them, in that order.
    """
    texts = [[story["text"] for story in group] for group in groups]
    values = {f"distinct_{n}": [distinct(group, n) for group in texts] for n in (1, 2, 3, 4)}
    values["repetition"] = [_mean([repetition(text) for text in group]) for group in texts]
    values["ends"] = [_mean([ends_properly(s["text"], s["ended"]) for s in group]) for group in groups]
    values["words"] = [_mean([len(words_of(text)) for text in group]) for group in texts]
    results = {key: bootstrap_mean(own) for key, own in values.items()}
    results["ends"] = _share(values["ends"])
    rest = iter(overlaps or ())
    per_group = [list(islice(rest, len(group))) for group in groups]
    for i, key in enumerate(("overlap_words", "overlap_characters")):
        own = [_mean([pair[i] for pair in group]) for group in per_group]
        results[key] = bootstrap_mean(own) if overlaps is not None else None
    return results


def _mean(values: Sequence[float]) -> float:
    """The mean of the values that are known, nan if none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _share(values: Sequence[float]) -> dict[str, float]:
    """`bootstrap_mean` of shares. Where all are 0, or all 1, no drawing anew shows a spread: then Wilson's interval."""
    found = bootstrap_mean(values)
    if found["mean"] in (0, 1):
        found["low"], found["high"] = wilson(sum(values), len(values))
    return {key: min(1.0, max(0.0, value)) for key, value in found.items()}


def evaluate_stories(
    model,
    tok,
    prompts: Sequence[str],
    *,
    decoding: Decoding | None = None,
    training_text: Iterable[str] | None = None,
    real: Sequence[str] | None = None,
    stories: Sequence[dict] | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> dict:
    """What the model writes, measured as the head of this file says.

    training_text: the documents it was trained on; None leaves the overlaps None.
    real: whole stories that it was not trained on, for the reference; None: without one.
    stories: completions that `write_stories` yielded before; None writes them.
    Returns {"prompts", "texts", "over_context", "metrics", "reference", "stories"}. over_context: how many texts were
    longer, with their prompt, than the model's context, so that their end was written without seeing their beginning.
    reference: {"texts", "metrics"} of `real_continuations`.
    Raises: as `write_stories`.
    """
    for name, texts in (("prompts", prompts), ("training_text", training_text), ("real", real)):
        if isinstance(texts, str):
            raise TypeError(f"{name}='...' is a single str; give a list of documents: [text]")
    decoding = decoding or Decoding()
    if stories is None:
        stories = list(write_stories(model, tok, prompts, decoding, batch_size=batch_size, progress=progress))
    groups: list[list[dict]] = [[] for _ in prompts]
    for story in sorted(stories, key=lambda story: story["number"]):
        groups[story["prompt"]].append(story)
    reference = real_continuations(real, prompts, tok, decoding) if real else []
    texts = [story["text"] for group in [*groups, *reference] for story in group]
    overlaps = longest_overlaps(texts, training_text) if training_text is not None else None
    own, others = (overlaps[: len(stories)], overlaps[len(stories) :]) if overlaps is not None else (None, None)
    wholes = [_broken(prompts[story["prompt"]], decoding) + story["text"] for story in stories]
    return {
        "prompts": len(prompts),
        "texts": len(stories),
        "over_context": sum(len(ids) > model.cfg.max_seq_len for ids in tok.encode_batch(wholes)),
        "metrics": measure(groups, own),
        "reference": {"texts": sum(map(len, reference)), "metrics": measure(reference, others)} if reference else None,
        "stories": [story for group in groups for story in group],
    }


def real_continuations(real: Sequence[str], prompts: Sequence[str], tok, decoding: Decoding) -> list[list[dict]]:
    """Real stories as if they had been written: what follows their beginnings, cut where a model's text would be.

    A beginning has as many words as half of the prompts have at most. As many stories make a group as a prompt has
    completions, but they are different stories: their distinct-n is what texts reach that have nothing in common.
    Fewer groups than prompts if there are few stories; [] if they don't make two.
    """
    beginning = sorted(len(words_of(prompt)) for prompt in prompts)[(len(prompts) - 1) // 2]
    rests = [story.strip()[_end_of_word(story.strip(), beginning) :] for story in real]
    rests = [rest for rest in rests if words_of(rest)][: len(prompts) * decoding.completions]
    stories = []
    for i, ids in enumerate(tok.encode_batch(rests, bos=False)):
        ended = len(ids) < decoding.max_new_tokens  # one of a model's tokens goes to EOS
        text = rests[i] if ended else tok.decode(ids[: decoding.max_new_tokens])
        stories.append({"prompt": i // decoding.completions, "number": 0, "text": text, "ended": ended})
    count = len(stories) // decoding.completions
    groups = [stories[i * decoding.completions : (i + 1) * decoding.completions] for i in range(count)]
    return groups if count >= 2 else []


# ---------------------------------------------------------------- saved models


def stories_of(
    names: Sequence[str | Path],
    prompts: str | Path | Sequence[str] = "storyworld",
    *,
    decoding: Decoding | None = None,
    with_seeds: bool = True,
    save: bool = False,
    progress: bool = False,
) -> dict[str, dict]:
    """What saved models write, a record for each run, by its name. What evaluation.json keeps is not computed again.

    names: folders of trained_models/, or paths.  with_seeds: their runs with other seeds, too (name-seed2, ...).
    prompts: as in `read_prompts`.  save: keep new records in each model's evaluation.json, section "stories".
    A record holds what `evaluate_stories` returns, but of the stories themselves three only (`samples`; all of them:
    `completions_of`), and what it depends on. Where the training text is not at hand, a warning says so, and there are
    neither overlaps nor a reference.
    Raises: ValueError or OSError for a bad file, model or setting.
    """
    decoding = decoding or Decoding()
    label, texts = read_prompts(prompts)
    runs = [run for family in find_runs(names, with_seeds).values() for run in family]
    return {run.name: _record_of(run, label, texts, decoding, save, progress) for run in runs}


def kept_stories(
    names: Sequence[str | Path], prompts: str | None = None, *, with_seeds: bool = True
) -> dict[str, dict]:
    """The records that models' evaluation.json keep for their present weights; runs without one are left out.

    prompts: the name of the file that they were made with; None: whatever was saved first.
    """
    key = {"protocol": PROTOCOL} | ({} if prompts is None else {"name": prompts})
    runs = [run for family in find_runs(names, with_seeds).values() for run in family]
    found = {run.name: find_records(run.folder, "stories", key) for run in runs}
    return {name: records[0] for name, records in found.items() if records}


def _record_of(run: Run, label: str, prompts: list[str], decoding: Decoding, save: bool, progress: bool) -> dict:
    key = {"protocol": PROTOCOL, **_subject(run, label, prompts, decoding), "training_text": run.text_fingerprint}
    for record in read_section(run.folder, "stories"):
        if matches(record, key | {"text_at_hand": True}):
            return record  # the text need not be here for that
    source = _training_text(run)

    def compute() -> dict:
        started = time.perf_counter()
        stories = completions_of(run.folder, prompts, decoding, progress=progress)
        model, tok, _ = load_model(run.folder)
        found = evaluate_stories(
            model, tok, prompts, decoding=decoding, stories=stories,
            training_text=source.documents("train") if source else None,
            real=list(islice(source.documents("valid"), len(prompts) * decoding.completions)) if source else None,
        )  # fmt: skip
        written = found.pop("stories")
        step = max(1, len(prompts) // 3)
        shown_stories = [story for story in written if story["number"] == 0][::step][:3]
        facts = {"model": run.family, "tokenizer": run.tokenizer, "trained_on": run.text}
        return {**facts, **found, "samples": shown_stories, "seconds": round(time.perf_counter() - started, 1)}

    return kept(run.folder, "stories", key | {"text_at_hand": source is not None}, compute, save=save)


def _subject(run: Run, label: str, prompts: list[str], decoding: Decoding) -> dict:
    """What a model's completions depend on, beside the code."""
    fingerprint = documents_fingerprint(prompts)
    settings = asdict(decoding)
    return {"weights": weights_of(run.folder), "name": label, "fingerprint": fingerprint, "decoding": settings}


def _training_text(run: Run) -> Source | None:
    """The very text that a run was trained on, or None, with a warning that says why it is not at hand."""
    try:
        source = training_source(run.folder)
        if source.fingerprint == run.text_fingerprint:
            return source
        reason = f"{source.name} is not the text that it was" if run.text_fingerprint else "run.json does not say which"
    except (OSError, ValueError, KeyError) as error:
        reason = str(error)
    note = f"{run.name}: its training text is not at hand, so neither overlaps nor a reference are known: {reason}"
    warnings.warn(note, stacklevel=2)
    return None


def completions_of(
    name: str | Path, prompts: Sequence[str], decoding: Decoding | None = None, *, progress: bool = False
) -> list[dict]:
    """All completions of a saved model, as `write_stories` yields them: from the cache, or written and put there.

    An interrupted call is continued by the next one. The file, one JSON object a line, lies in the folder "stories" of
    the project's cache (lab/data.py).
    """
    decoding, run = decoding or Decoding(), read_run(name)
    subject = _subject(run, "", list(prompts), decoding) | {"protocol": PROTOCOL}
    digest = hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "stories" / f"{run.name}-{digest}.jsonl"
    stories = read_journal(path)
    for story in stories:
        if set(story) != {"prompt", "number", "text", "ended"} or story["prompt"] not in range(len(prompts)):
            raise ValueError(f"{shown(path)} holds {reprlib.repr(story)}, which is no completion: delete the file")
    if len(stories) < len(prompts) * decoding.completions:
        model, tok, _ = load_model(name)
        for story in write_stories(model, tok, prompts, decoding, have=tuple(stories), progress=progress):
            add_to_journal(path, story)
            stories.append(story)
    return sorted(stories, key=lambda story: (story["prompt"], story["number"]))


# ---------------------------------------------------------------- files that grow line by line


def add_to_journal(path: Path, record: dict) -> None:
    """Appends a record as one line of JSON, on the disk before the call returns."""
    with clear_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            line = json.dumps(record, ensure_ascii=False, allow_nan=False)
            file.write(line.encode(errors="backslashreplace") + b"\n")  # half characters, as JSON spells them
            file.flush()
            os.fsync(file.fileno())


def read_journal(path: Path) -> list[dict]:
    """The records of such a file, [] if there is none.

    A last line without its end was torn by a kill or a full disk: it is cut off the file, and whatever it was is done
    again. Any other line that is no JSON object raises ValueError: then something else has written to the file.
    """
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return [record for _, record in json_records(path)] if whole.strip() else []


# ---------------------------------------------------------------- to look at


def rows(results: dict[str, dict]) -> list[dict[str, str]]:
    """A line for each run, in the order given, and one for each kind of real stories that they are laid beside."""
    named = [(name, record["metrics"]) for name, record in results.items()]
    named += [(name, reference["metrics"]) for name, reference in references(results).items()]
    return [
        {"model": name, **{heading: _cell(metrics[key], form) for key, (heading, form) in METRICS.items()}}
        for name, metrics in named
    ]


def references(results: dict[str, dict]) -> dict[str, dict]:
    """The references of the records by a name for each, equal ones once: texts are cut after tokens, so that another
    tokenizer makes another one."""
    found: dict[str, tuple[dict, str]] = {}
    for record in results.values():
        if record["reference"]:
            found.setdefault(json.dumps(record["reference"]), (record["reference"], record["tokenizer"]))
    if len(found) == 1:
        return {"real stories": next(iter(found.values()))[0]}
    return {f"real stories ({tokenizer}, {i})": own for i, (own, tokenizer) in enumerate(found.values(), 1)}


def _cell(found: dict | None, form: str) -> str:
    """A mean with its interval, such as `0.82 (0.80 to 0.84)`."""
    if found is None:
        return "not known"
    return f"{form.format(found['mean'])} ({form.format(found['low'])} to {form.format(found['high'])})"


def table(results: dict[str, dict]) -> "DataFrame":
    """The same as a DataFrame, models as rows."""
    import pandas as pd

    return pd.DataFrame(rows(results)).set_index("model")


def notes(results: dict[str, dict]) -> list[str]:
    """What must be said beside the figures: prompts, settings, texts that outgrew the context."""
    lines_ = []
    settings = {json.dumps([r["name"], r["fingerprint"], r["prompts"], r["decoding"]]): r for r in results.values()}
    for record in settings.values():
        own = record["decoding"]
        lines_.append(
            f"{record['name']}: {record['prompts']} prompts, {own['completions']} completions of each, at most "
            f"{own['max_new_tokens']} tokens, temperature {own['temperature']:g}, top_p {own['top_p']}."
        )
    if any(record["metrics"]["overlap_words"] for record in results.values()):
        lines_.append("Longest overlap: the longest piece of a text that stands in the model's training text, too.")
    if len(settings) > 1:
        lines_.append("These were not made with the same prompts and settings: they cannot be compared.")
    if len({record["tokenizer"] for record in results.values()}) > 1:
        lines_.append("Texts are cut after the same number of tokens, so other tokenizers cut at other lengths.")
    outgrown = [f"{n}: {r['over_context']} of {r['texts']}" for n, r in results.items() if r["over_context"]]
    return lines_ + ([f"Texts that outgrew the model's context: {', '.join(outgrown)}."] if outgrown else [])


def samples(results: dict[str, dict], prompts: str | Path | Sequence[str] | None = None, most: int = 300) -> str:
    """Three completions of each run, cut to `most` characters.  prompts: as they were given, to show them as well."""
    texts = read_prompts(prompts)[1] if prompts is not None else None
    parts = []
    for name, record in results.items():
        if texts is not None and documents_fingerprint(texts) != record["fingerprint"]:
            raise ValueError(f"prompts: {name} did not continue these, but {record['name']}")
        for story in record["samples"]:
            before = f"{texts[story['prompt']]} >>>" if texts is not None else "..."
            whole = story["ended"] and len(story["text"]) <= most
            after = story["text"][:most] + ("" if whole else " ...")
            parts.append(f"{name}, prompt {story['prompt']}: {before}{after}")
    return "\n\n".join(parts)


def plot_stories(results: dict[str, dict]) -> "Figure":
    """A panel for each metric: a dot with its interval for each run, and where real stories are (dashed, on grey).

    Runs of one model (name, name-seed2, ...) share a line.
    """
    import matplotlib.pyplot as plt

    families: dict[str, list[dict]] = {}
    for record in results.values():
        families.setdefault(record["model"], []).append(record)
    most = max(map(len, families.values()))
    with plt.rc_context(STYLE):
        height = 1.3 + 3 * (0.75 + len(families) * (0.22 + 0.08 * most))
        figure, axes = plt.subplots(3, 3, figsize=(10, height), sharey=True, layout="constrained")
    plt.close(figure)  # so that a notebook shows it once
    for ax, key in zip(axes.flat, METRICS):
        _panel(ax, key, list(families.values()))
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(families)), list(families), parse_math=False)
        ax.set_ylim(len(families) - 0.5, -0.5)
    with_real = any(record["reference"] for record in results.values())
    dashed = "; dashed, with its interval in grey: real stories, continued from their own beginnings" * with_real
    text = [f"What the models write. A dot for each run, 95 % intervals{dashed}", *notes(results)]
    text = [piece for line in text for piece in textwrap.wrap(line, 140)]
    figure.suptitle("\n".join(text), x=0.01, ha="left", fontsize=9, parse_math=False)
    return figure


def _panel(ax: "Axes", key: str, families: list[list[dict]]) -> None:
    from matplotlib.ticker import PercentFormatter

    heading, form = METRICS[key]
    for row, records in enumerate(families):
        reference = (records[0]["reference"] or {"metrics": {key: None}})["metrics"][key]
        if reference is not None:
            ax.fill_betweenx([row - 0.5, row + 0.5], reference["low"], reference["high"], color="#DDDDDD", linewidth=0)
            ax.plot([reference["mean"]] * 2, [row - 0.5, row + 0.5], color="#444444", linestyle="dashed", linewidth=1)
        for place, record in enumerate(records):
            found = record["metrics"][key]
            if found is not None:
                y = row + (place - (len(records) - 1) / 2) * 0.7 / len(records)
                ax.plot([found["low"], found["high"]], [y, y], color=PALETTE[0], linewidth=1.2)
                ax.plot(found["mean"], y, "o", color=PALETTE[0], markersize=4)
    if all(record["metrics"][key] is None for records in families for record in records):
        ax.text(0.5, 0.5, "not known", transform=ax.transAxes, ha="center", color=NOTE)
    ax.set_title(heading, loc="left", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.margins(x=0.1)
    if form.endswith("%}"):
        ax.xaxis.set_major_formatter(PercentFormatter(xmax=1))
    ax.locator_params(axis="x", nbins=5)


# ---------------------------------------------------------------- terminal


def main(arguments: list[str] | None = None) -> None:
    """`python -m lab.stories NAME ... --prompts PATH`: what saved models write, as a table."""
    import tyro

    def command(
        names: tyro.conf.Positional[list[str]],
        prompts: str = "storyworld",
        with_seeds: bool = True,
        save: bool = False,
        decoding: tyro.conf.OmitArgPrefixes[Decoding] = Decoding(),
    ) -> None:
        """Several completions of each of many prompts by saved models, measured.

        Args:
            names: folders of trained_models/, or paths to such folders
            prompts: a .yaml, .json, .jsonl or .txt file, or "storyworld"
            with_seeds: also the runs of these models with other seeds
            save: keep the results in each model's evaluation.json
        """
        from lab.evaluation import markdown

        results = stories_of(names, prompts, decoding=decoding, with_seeds=with_seeds, save=save, progress=True)
        print(markdown(rows(results)))
        print("\n".join(notes(results)))
        print(f"\n{samples(results, prompts)}")

    try:
        tyro.cli(command, args=arguments, prog="python -m lab.stories")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
