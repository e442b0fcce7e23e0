"""Saving and loading without pickle: whole models, and nested dicts of tensors such as a checkpoint.

    save_model(model, tok, "my_model")                 # trained_models/my_model/
    model, tok, cfg = load_model("my_model")
    save_tensors("checkpoint/state.safetensors", {"optimizer": optimizer.state_dict(), "step": 100})

A model's folder holds `model_config.json` (architecture and the tokenizer's fingerprint), `model.safetensors`
(weights), the tokenizer itself, and where given `train_config.json` and `run.json`. Nothing read from it is ever run.

A save that is cut short leaves a model that loads, the old one or the new. A new folder is put together under a
temporary name and then renamed. In an existing one the weights are replaced in a single step, and nothing that they
depend on may change: another architecture or tokenizer needs another folder. Only one process at a time may save to a
folder.
"""

import difflib
import json
import os
import shutil
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from config import ModelConfig, check_name
from lab import files
from lab.files import clear_write_errors, json_text, read_json, shown, write_atomic

FORMAT_VERSION = 1  # of model_config.json; raised when older code could no longer read what is written
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
NO_PICKLE = "a pickle can run code when it is opened, so this one was not; convert it to safetensors where you trust it"


# ---------------------------------------------------------------- tensors in one file


def save_tensors(path: str | Path, nested: dict) -> None:
    """Writes nested dicts, lists and tuples of tensors, numbers, strings, bools and None to one safetensors file.

    Tensors are named by their path ("optimizer.state.0.exp_avg"), the rest is JSON in the file's header. Keys may be
    str, int, float, bool or None. Tensors that share memory are written out each. Raises: TypeError for anything else.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_describe(nested, "", tensors))
    write_atomic(path, _to_bytes(tensors, {"nested": structure}))


def load_tensors(path: str | Path) -> dict:
    """What `save_tensors` wrote, bit for bit, on the CPU. Raises ValueError for a damaged or another kind of file."""
    tensors, metadata = read_weights(path)
    if "nested" not in metadata:
        raise ValueError(f"{shown(path)} was not written by save_tensors: its header holds no 'nested' structure")
    try:
        return _rebuild(json.loads(metadata["nested"]), tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{shown(path)} is damaged: its header does not fit its tensors ({error!r})") from error


def _describe(value, place: str, tensors: dict[str, Tensor]):
    """`value` as JSON, its tensors moved to `tensors`. Every container becomes {kind: [...]}, so none is ambiguous."""
    if isinstance(value, Tensor):
        name = place.encode("ascii", "backslashreplace").decode()
        while name in tensors or name == "__metadata__":
            name += "'"
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        for key in value:
            if not (key is None or isinstance(key, (bool, int, float, str))):
                raise TypeError(f"{place or 'nested'}: the key {key!r} is a {type(key).__name__}, not a number or str")
        return {"dict": [[key, _describe(item, _join(place, key), tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_describe(item, _join(place, i), tensors) for i, item in enumerate(value)]}
    raise TypeError(
        f"{place or 'nested'}: a {type(value).__name__} can't be saved; use tensors, numbers, strings, bools, None, "
        "and dicts, lists or tuples of these (torch.from_numpy makes a tensor of an array)"
    )


def _join(place: str, key) -> str:
    return f"{place}.{key}" if place else str(key)


def _rebuild(described, tensors: dict[str, Tensor]):
    if not isinstance(described, dict):
        return described
    ((kind, content),) = described.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _rebuild(item, tensors) for key, item in content}
    items = [_rebuild(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)


def _to_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file. It takes only contiguous CPU tensors, no two of them in the same memory."""
    ready, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        ready[name] = tensor
    return safetensors.torch.save(ready, metadata)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header texts of a safetensors file, on the CPU.

    Raises: FileNotFoundError; ValueError for a file that is empty, cut short, damaged, a Git LFS pointer or a pickle.
    The file is read whole before it is looked at, so that a save by another process can't change it halfway.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(_what_is_wrong(path, content, error)) from error
    return tensors, header.get("__metadata__", {})


def _what_is_wrong(path: Path, content: bytes, error: Exception) -> str:
    if not content:
        return f"{shown(path)} is empty: restore it (git checkout, a backup), or train the model again"
    if content.startswith(files.LFS_POINTER):
        return f"{shown(path)} is a Git LFS pointer, not the weights themselves: run `git lfs pull`"
    # A zip, as torch.save writes, or a bare pickle; a safetensors file has its header's "{" in ninth place.
    if content.startswith((b"PK", b"\x80")) and content[8:9] != b"{":
        return f"{shown(path)} is a pickle or an archive of pickles, whatever its name says; {NO_PICKLE}"
    return (
        f"{shown(path)} ({len(content):,} bytes) is cut short, damaged or no safetensors file ({error}): "
        "restore it (git checkout, a backup), or train the model again"
    )


# ---------------------------------------------------------------- finding models


def model_folder(name: str | Path) -> Path:
    """The folder of the model called `name`, existing or not: trained_models/<name>, or a path to a folder.

    A path is a `Path` or holds a `/`; a relative one starts at the checkout, or in the working directory if only that
    has it. Raises: ValueError for a name that no folder can have.
    """
    if isinstance(name, str) and not any(separator in name for separator in ("/", "\\")):
        return files.TRAINED_MODELS / check_name(name, "name")
    path = Path(name).expanduser()
    here, there = path.absolute(), files.ROOT / path
    return here if here.exists() and not there.exists() else there


def list_models(folder: str | Path | None = None) -> list[str]:
    """Names of the models in `folder` (trained_models/ by default): those with a config and weights, sorted."""
    folder = files.TRAINED_MODELS if folder is None else Path(folder)
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name[0] != "." and _is_complete(path))


def _is_complete(folder: Path) -> bool:
    return (folder / "model_config.json").is_file() and (folder / "model.safetensors").is_file()


# ---------------------------------------------------------------- saving a model


def save_model(model: nn.Module, tok, name: str | Path, *, train_config=None, run: dict | None = None) -> Path:
    """Saves a `GPT` with its tokenizer so that `load_model` gives the same model back; returns the folder.

    name: a str is the model's name, saved under trained_models/; a `Path` is the folder itself.
    train_config: a TrainConfig or dict, kept as train_config.json.  run: a dict, kept as run.json.
    Weights are written as fp32, tied ones once; buffers only if they are persistent.
    Raises: ValueError if the model could not be loaded again (blocks exchanged by hand, another vocabulary than the
    tokenizer's), or if the folder holds another model; OSError if it can't be written.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    folder = files.TRAINED_MODELS / check_name(name, "name") if isinstance(name, str) else model_folder(name)
    _check_savable(model, tok)
    contents = _contents(model, tok, train_config, run)
    if folder.exists():
        _check_replaceable(folder, model.cfg, tok)
    with clear_write_errors(folder):
        _remove_leftovers(folder)
        if folder.exists():
            _write_model(folder, tok, contents)
        else:
            _write_new_folder(folder, tok, contents)
    return folder


def halve_weights(name: str | Path) -> Path:
    """Rewrites the weights of a saved model in fp16, for a file of half the size; returns its path.

    They are loaded as fp32, as always. Rounding costs less than 0.1 % of each number above 1e-4, so scores kept in
    the folder, which know their weights by a fingerprint, have to be measured again.
    Raises: ValueError if a number is too large for fp16 (65,504), before anything is written.
    """
    path = _find_model(name) / "model.safetensors"
    weights, same = read_weights(path)
    halves = {n: t.half() if t.is_floating_point() else t for n, t in weights.items()}
    if large := [n for n, t in halves.items() if t.is_floating_point() and not t.isfinite().all()]:
        raise ValueError(f"{shown(path)}: fp16 can't hold numbers of {_first_few(large)}: keep these weights in fp32")
    with clear_write_errors(path.parent):
        write_atomic(path, _to_bytes(halves, same))
    return path


def _contents(model: nn.Module, tok, train_config, run: dict | None) -> dict[str, str | bytes]:
    """File name -> content, in the order of writing.

    The weights come after all that they need, and before run.json, which tells how good they are.
    """
    tokenizer = {"name": tok.name, "vocab_size": tok.vocab_size, "fingerprint": tok.fingerprint}
    config = {"format_version": FORMAT_VERSION, "model": model.cfg.to_dict(), "tokenizer": tokenizer}
    contents = {"model_config.json": json_text(config, "model_config.json")}
    if train_config is not None:
        values = train_config.to_dict() if hasattr(train_config, "to_dict") else train_config
        contents["train_config.json"] = json_text(values, "train_config.json")
    contents["model.safetensors"] = _weights_as_bytes(model)
    if run is not None:
        contents["run.json"] = json_text(run, "run.json")
    return contents


def _weights_as_bytes(model: nn.Module) -> bytes:
    """model.safetensors: each tensor once; the header says of a tied one's other names which one it stands under."""
    state = model.state_dict()
    same = _other_names(state)
    weights = {n: t.float() if t.is_floating_point() else t for n, t in state.items() if n not in same}
    return _to_bytes(weights, same)


def _other_names(state: dict[str, Tensor]) -> dict[str, str]:
    """{other name: first name} of the tensors that stand in `state` under several names, being the same memory."""
    first, same = {}, {}
    for name, tensor in state.items():
        memory = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if tensor.numel() and memory in first:
            same[name] = first[memory]
        first.setdefault(memory, name)
    return same


def _write_model(folder: Path, tok, contents: dict[str, str | bytes]) -> None:
    tokenizer_file = Path(tok.save(folder)).name
    for other in TOKENIZER_FILES:  # left by a run that was given up before it had weights
        if other != tokenizer_file:
            (folder / other).unlink(missing_ok=True)
    for file, content in contents.items():
        write_atomic(folder / file, content)


def _write_new_folder(folder: Path, tok, contents: dict[str, str | bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = files.temporary_beside(folder)
    temporary.mkdir()
    try:
        _write_model(temporary, tok, contents)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    files.sync_folder(folder.parent)


def _remove_leftovers(folder: Path) -> None:
    """Removes what an earlier save left when it was killed."""
    for path in files.leftovers(folder.parent, folder.name) + files.leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _check_savable(model: nn.Module, tok) -> None:
    kind = type(model).__name__
    if kind != "GPT":
        raise ValueError(
            f"model={kind}: load_model builds a GPT from its config, so only a GPT can be saved; "
            "for the weights of another module use save_tensors(path, module.state_dict())"
        )
    _check_vocabulary(model.cfg, tok)
    problems = _differences(model.state_dict(), _build(model.cfg).state_dict())
    if problems:
        raise ValueError(f"this model is not what GPT(model.cfg) builds, so it could not be loaded again: {problems}")


def _check_replaceable(folder: Path, cfg: ModelConfig, tok) -> None:
    """Refuses to mix two models in one folder. One without weights (a run that has just begun) takes any."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{shown(folder)} is a file: choose another name, or remove it")
    if not (folder / "model.safetensors").exists():
        return
    if not (folder / "model_config.json").exists():
        raise ValueError(f"{shown(folder)} holds weights but no model_config.json: choose another name, or remove it")
    old_cfg, old_tokenizer = _read_config(folder)
    old, new = old_cfg.to_dict(), cfg.to_dict()
    changed = [f"{field}={old[field]!r} there, {new[field]!r} here" for field in new if old[field] != new[field]]
    if old_tokenizer["fingerprint"] != tok.fingerprint:
        changed.append(f"tokenizer {old_tokenizer['fingerprint']} there, {tok.fingerprint} here")
    if changed:
        raise ValueError(f"{shown(folder)} holds another model ({'; '.join(changed)}): choose another name")


# ---------------------------------------------------------------- loading a model


def load_model(name: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, object, ModelConfig]:
    """(model, tokenizer, config) of a model in trained_models/, or of the folder at a path; the model in eval mode.

    PyTorch's random state is left alone. Raises: FileNotFoundError if there is no such model or it lacks a file;
    ValueError if a file is damaged, from newer code, a pickle, or does not fit the others.
    """
    folder = _find_model(name)
    cfg, tokenizer_record = _read_config(folder)
    tok = _load_tokenizer(folder, tokenizer_record)
    _check_vocabulary(cfg, tok, f"{shown(folder)}: ")
    weights = _read_weights_of(folder)
    model = _build(cfg)
    problems = _differences(weights, model.state_dict())
    if problems:
        raise ValueError(f"{shown(folder)}: model.safetensors does not fit model_config.json: {problems}")
    _check_ties(folder, model, weights)
    model.load_state_dict(weights)
    return model.to(device).eval(), tok, cfg


def _find_model(name: str | Path) -> Path:
    folder = model_folder(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"{shown(folder)} is a file: name the model's folder")
    if folder.parent != files.TRAINED_MODELS:
        raise FileNotFoundError(f"{shown(folder)}: no such folder; a model in trained_models/ is loaded by its name")
    known = list_models()
    if not known:
        raise FileNotFoundError(f"name={folder.name!r}: trained_models/ holds no model yet; train one in train.ipynb")
    close = difflib.get_close_matches(folder.name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise FileNotFoundError(f"name={folder.name!r} is not in trained_models/{hint} It holds: {', '.join(known)}")


def _read_config(folder: Path) -> tuple[ModelConfig, dict]:
    """The model's config and the record of its tokenizer, from model_config.json."""
    path = folder / "model_config.json"
    if not path.is_file():
        raise _missing(path)
    content = read_json(path)
    version = content.get("format_version")
    if not isinstance(version, int):
        raise ValueError(f"{shown(path)} has no format_version, so save_model did not write it")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{shown(path)}: format_version={version} was saved by newer code; this one reads up to {FORMAT_VERSION}: "
            "update it (git pull)"
        )
    model, tokenizer = content.get("model"), content.get("tokenizer")
    if not (isinstance(model, dict) and isinstance(tokenizer, dict) and "fingerprint" in tokenizer):
        raise ValueError(f"{shown(path)} must hold a 'model' and a 'tokenizer' with its 'fingerprint': restore it")
    try:
        return ModelConfig.from_dict(model), tokenizer
    except ValueError as error:
        raise ValueError(f"{shown(path)}: {error} (a typo, or saved by newer code?)") from error


def _missing(path: Path) -> Exception:
    """The error for a model's folder that lacks a file, with what the rest of the folder suggests."""
    folder = path.parent
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        return ValueError(f"{shown(folder)} holds no {path.name}, only {pickles[0]}; {NO_PICKLE}")
    if (folder / "checkpoint").is_dir():
        return FileNotFoundError(
            f"{shown(folder)} holds no {path.name} yet, only a checkpoint: go on with its training"
        )
    return FileNotFoundError(f"{shown(folder)} holds no {path.name}: restore it, or train the model again")


def _load_tokenizer(folder: Path, record: dict):
    from tokenizer import load_tokenizer

    tok = load_tokenizer(folder)
    if tok.fingerprint != record["fingerprint"]:
        raise ValueError(
            f"{shown(folder)}: the tokenizer in it has the fingerprint {tok.fingerprint}, but the model was trained "
            f"with {record['fingerprint']} ({record.get('name')}): put that one back"
        )
    tok.name = record.get("name", tok.name)  # its own name, not that of the folder it lies in here
    return tok


def _check_vocabulary(cfg: ModelConfig, tok, where: str = "") -> None:
    if cfg.vocab_size != tok.vocab_size:
        raise ValueError(
            f"{where}vocab_size={cfg.vocab_size} of the model differs from the tokenizer's {tok.vocab_size}: "
            "make the model with vocab_size=tok.vocab_size, or use the tokenizer it was made for"
        )


def _read_weights_of(folder: Path) -> dict[str, Tensor]:
    """All tensors by name, tied ones under each of their names."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise _missing(path)
    weights, header = read_weights(path)
    return {name: weights[first] for name, first in header.items() if first in weights} | weights


def _build(cfg: ModelConfig) -> nn.Module:
    """GPT(cfg), without drawing from the random state that the caller's own numbers come from."""
    from model import GPT

    with torch.random.fork_rng(devices=[]):
        return GPT(cfg)


def _differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """How two sets of named tensors differ in names, shapes or kinds of number; "" if they do not."""
    both = [name for name in expected if name in found]
    problems = {
        "missing": [name for name in expected if name not in found],
        "not expected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} is {tuple(found[name].shape)}, not {tuple(expected[name].shape)}"
            for name in both
            if found[name].shape != expected[name].shape
        ],
        "of another type": [
            f"{name} is {found[name].dtype}, not {expected[name].dtype}"
            for name in both
            if found[name].is_floating_point() != expected[name].is_floating_point()
        ],
    }
    return "; ".join(f"{what}: {_first_few(names)}" for what, names in problems.items() if names)


def _first_few(names: list[str], few: int = 3) -> str:
    return ", ".join(names[:few]) + (f" and {len(names) - few} more" if len(names) > few else "")


def _check_ties(folder: Path, model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Weights that the model ties must be equal in the file, or one of them would be lost without a word."""
    for name, first in _other_names(model.state_dict()).items():
        if not torch.allclose(weights[name], weights[first], rtol=0, atol=0, equal_nan=True):
            raise ValueError(
                f"{shown(folder)}: the config ties {name} to {first}, but model.safetensors holds two values for them: "
                "was it saved with another tied_head?"
            )
