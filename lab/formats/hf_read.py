"""`from_hf`: a model of transformers, from a folder or an object, as a `GPT`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from config import ModelConfig
from lab.files import read_json, shown
from lab.formats.families import DEFAULTS, FAMILIES
from lab.formats.plain import Weights, fill, new_model
from lab.formats.settings import refuse, size
from lab.saving import NO_PICKLE, PICKLE_SUFFIXES, model_folder, read_weights
from model import GPT

# Buffers that old checkpoints hold beside the weights.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")


def from_hf(source: Any, *, max_seq_len: int | None = None) -> GPT:
    """A `GPT` with the logits of someone else's model, in fp32 and in eval mode.

    source: a folder with config.json and safetensors (one file, or several with their index), or a model object of
    transformers.  max_seq_len: a shorter context than the model's own, which makes a smaller decode cache.
    Raises: ValueError for an architecture or a setting that a `GPT` cannot hold, and for files that are damaged or do
    not fit together; FileNotFoundError for a missing one. Code that lies in the folder is not run.
    """
    hf, weights = _read_folder(source) if isinstance(source, str | Path) else _read_object(source)
    kind = hf.get("model_type")
    family = FAMILIES.get(str(kind))
    if family is None:
        raise ValueError(f"model_type={kind!r} is unknown; from_hf reads {', '.join(FAMILIES)}")
    refuse(hf, "quantization_config", why="load the model unquantized")
    hf = _shortened(DEFAULTS.get(kind, {}) | hf, max_seq_len)
    model = new_model(ModelConfig(**family.read(hf)))
    weights = {name: tensor for name, tensor in weights.items() if not IGNORED.search(name)}
    fill(model, family.after_reading(weights, hf), lambda ours: family.name(ours, model.cfg))
    return model.eval()


def _shortened(hf: dict, max_seq_len: int | None) -> dict:
    """The config with a context of at most `max_seq_len` tokens."""
    if max_seq_len is None:
        return hf
    name = "n_positions" if "n_positions" in hf else "max_position_embeddings"
    if max_seq_len > size(hf, name):
        raise ValueError(f"max_seq_len={max_seq_len} exceeds the {name}={hf[name]} of the model: ask for less")
    return hf | {name: max_seq_len}


def _read_object(model) -> tuple[dict, Weights]:
    if not (hasattr(model, "state_dict") and hasattr(getattr(model, "config", None), "to_dict")):
        raise TypeError(f"source={type(model).__name__}: give a folder or a model object of transformers")
    return model.config.to_dict(), {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def _read_folder(source: str | Path) -> tuple[dict, Weights]:
    folder = model_folder(Path(source))
    if not folder.is_dir():
        raise FileNotFoundError(f"{shown(folder)}: no such folder; give one that holds config.json and safetensors")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{shown(folder)} holds no config.json: copy it there from where the model came from")
    hf = read_json(folder / "config.json")
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return hf, _read_weights(folder, "model.safetensors")
    weights = {}
    for file in sorted(set(_shards(index))):
        weights |= _read_weights(folder, file)
    return hf, weights


def _shards(index: Path) -> list[str]:
    """The names of the files that an index leads to: files beside it, nothing else."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) and Path(f).name == f for f in files.values()):
        raise ValueError(f"{shown(index)} must hold a 'weight_map' from weights to the names of files beside it")
    return list(files.values())


def _read_weights(folder: Path, file: str) -> Weights:
    if (folder / file).is_file():
        return read_weights(folder / file)[0]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise ValueError(f"{shown(folder)} holds no {file}, only {pickles[0]}; {NO_PICKLE}")
    raise FileNotFoundError(f"{shown(folder)} holds no {file}: copy it there from where the model came from")
