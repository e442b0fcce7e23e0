"""The beginnings that models go on from: of a file in one of the forms they are published in, or built in."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.files import shown
from lab.records import checked_text, field_names, json_records, lines
from lab.stories.words import end_of_word

STORYWORLD_PROMPTS = 44  # as many as the TinyStories paper has


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
    return text[: end_of_word(text, 16 + index % 17)]


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
            raise ValueError(f"{place}: no field 'prompt'; there are {field_names(record)}")
        yield place, record["prompt"]


READERS = {".yaml": _from_yaml, ".yml": _from_yaml, ".json": _from_json, ".jsonl": _from_jsonl, ".txt": lines}
