"""Finished runs on the disk, so that an interrupted card goes on where it was, and what code they depend on."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import CodeType, FunctionType

from config import ModelConfig
from lab.data import cache_folder
from lab.files import read_json, shown, write_json
from lab.probes.card import PROTOCOL
from lab.probes.summary import summarise
from lab.probes.tasks import TASKS, fingerprint
from lab.probes.training import Job, run_job
from model import GPT

ONLY_LOOKS_ON = ("tools", "lab.live", "lab.tracer")  # modules that change nothing of what is trained


def read_run(job: Job, code: str) -> dict | None:
    """The run kept for this job, None if there is none. A damaged file is named in a warning, and done again."""
    path, key = _file(job, code)
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        if content.get("key") != key:
            raise ValueError(f"{shown(path)} does not hold what its name says")
        summarise(job.task, [content["run"]])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(f"{shown(path)} is damaged ({error}): this run is done again", stacklevel=2)
        return None
    return content["run"]


def write_run(job: Job, code: str, run: dict) -> None:
    """Keeps a finished run."""
    path, key = _file(job, code)
    write_json(path, {"key": key, "run": run})


def _file(job: Job, code: str) -> tuple[Path, dict]:
    """Where a run is kept, and what it depends on. A card with more seeds or rates so goes on from a smaller one."""
    key = {"protocol": PROTOCOL, "rows": fingerprint(TASKS[job.task]), "code": code} | asdict(job)
    key |= {"levels": list(job.levels), "tested": list(job.tested)}  # as JSON holds them
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "probes" / f"{job.task}-{digest}.json", key


# ---------------------------------------------------------------- the code behind a run


def blocks_of(cfg: ModelConfig) -> list[type]:
    """The classes of this project, or a notebook's, that the model is made of."""
    return list({type(module) for module in GPT(cfg).modules() if not type(module).__module__.startswith("torch")})


def code_of(cfg: ModelConfig) -> str | None:
    """Stands for the source of the blocks and of training, so that what was changed is trained again.

    It follows names: the classes that a block inherits from, the functions, classes and constants that their code
    mentions, and so on, as far as they are the project's own. None where a source can't be read.
    """
    todo, sources = [*blocks_of(cfg), run_job], {}
    while todo:
        thing = todo.pop()
        name = f"{thing.__module__}.{thing.__qualname__}"
        if name in sources or not _is_own(thing):
            continue
        try:
            sources[name] = inspect.getsource(thing)
        except (OSError, TypeError):
            return None
        todo += thing.__mro__ if isinstance(thing, type) else ()
        for used, value in _mentioned(thing):
            if isinstance(value, type | FunctionType):
                todo.append(value)
            elif isinstance(value, str | int | float):
                sources[f"{thing.__module__}.{used}"] = repr(value)
    return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:16]


def _is_own(thing: type | FunctionType) -> bool:
    """Whether this is the project's code, a notebook's or a script's, and does more than look on."""
    module = thing.__module__ or ""  # what exec made may have none
    if module.partition(".")[0] in sys.stdlib_module_names or module.startswith(ONLY_LOOKS_ON):
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return not {"site-packages", "dist-packages"} & set(Path(file).parts)


def _mentioned(thing: type | FunctionType) -> Iterator[tuple[str, object]]:
    """Names and values of the module's variables whose names stand in the code of a function, or of a class's."""
    members = list(vars(thing).values()) if isinstance(thing, type) else [thing]
    members = [getattr(member, "fget", None) or getattr(member, "__func__", member) for member in members]
    for function in map(inspect.unwrap, filter(callable, members)):
        if isinstance(function, FunctionType):
            for name in _names(function.__code__):
                if name in function.__globals__:
                    yield name, function.__globals__[name]


def _names(code: CodeType) -> set[str]:
    """The names in a piece of code and in the functions that it defines."""
    return set(code.co_names).union(*(_names(part) for part in code.co_consts if isinstance(part, CodeType)))
