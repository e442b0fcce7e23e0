"""`to_hf`: a `GPT` and its tokenizer as a folder that transformers loads."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from config import PRE_NORM, ModelConfig
from lab.files import clear_write_errors, json_text, shown, sync_folder, temporary_beside, write_atomic
from lab.formats.families import FAMILIES, STEPS, Family
from lab.formats.hf_tokenizers import tokenizer_files
from lab.formats.layer_form import LayerForm
from lab.formats.plain import check_vocabulary, few, plain_config, plain_weights
from lab.saving import model_folder
from model import GPT
from recipe import format, parse
from tokenizer import Tokenizer

HF_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")


def to_hf(model: GPT, tok: Tokenizer, folder: str | Path) -> Path:
    """Writes a folder that transformers' AutoModelForCausalLM and AutoTokenizer load; returns it.

    The model becomes the first of Llama, Mistral, Qwen3, Gemma 2, OLMo 2 and GPT-2 that can give its logits (in fp32).
    AutoTokenizer gives the ids of `tok.encode(text)`, BOS in front, and `decode(ids, skip_special_tokens=True)` the
    text of `tok.decode(ids)`; only bytes that form no character may come out as another number of U+FFFD.
    What an architecture has no setting for is multiplied out where that is possible: scaled or factorised embeddings,
    norms without a scale, RoPE on neighbouring channels; for GPT-2 fixed positions and shared key/value heads.
    Dropout is left behind. A folder written by an earlier call is replaced.
    Raises: ValueError for a setting that none of these architectures holds, a tokenizer of another vocabulary, or a
    folder that holds other files; OSError if it can't be written.
    """
    import safetensors.torch

    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    check_vocabulary(model.cfg, tok)
    family, plain, hf = _choose(model)
    weights = {family.name(name, plain): tensor for name, tensor in plain_weights(model, plain).items()}
    special = {"bos_token_id": tok.bos_id, "eos_token_id": tok.eos_id, "pad_token_id": tok.pad_id}
    contents = {
        "config.json": json_text(hf | special),
        "generation_config.json": json_text(special),
        **tokenizer_files(tok, plain.max_seq_len),
        "model.safetensors": safetensors.torch.save(family.before_writing(weights), {"format": "pt"}),
    }
    return _write_folder(model_folder(Path(folder)), contents)


def _choose(model: GPT) -> tuple[Family, ModelConfig, dict]:
    """The first architecture that holds the model, the settings that it holds, and its config.json."""
    obstacles = {}
    for name, family in FAMILIES.items():
        plain, form = plain_config(model, family.wanted(model.cfg))
        hf = {"architectures": [family.class_name], "model_type": name, "dtype": "float32"}
        hf |= family.write(plain, form or LayerForm(STEPS["pre"], windows=(None,) * plain.num_layers))
        obstacles[name] = _obstacles(plain, family, hf)
        if not obstacles[name]:
            return family, plain, hf
    fewest = min(len(found) for found in obstacles.values())
    nearest = [f"{name} but for {', '.join(found)}" for name, found in obstacles.items() if len(found) == fewest]
    raise ValueError(
        f"no stock architecture of transformers holds this model; it would be {'; or '.join(nearest)}. "
        "Train one without that to write it; save_model keeps this one as it is"
    )


def _obstacles(cfg: ModelConfig, family: Family, hf: dict) -> list[str]:
    """Where `cfg` differs from what is read back out of its config.json: "norm_bias=True (it has False)"."""
    back = {f.name: f.default for f in dataclasses.fields(ModelConfig)} | family.read(hf)
    back["recipe"] = format(parse(back["recipe"] or PRE_NORM))
    ours = cfg.to_dict() | {"recipe": cfg.recipe or PRE_NORM, "head_dim": cfg.head_dim, "mlp_hidden": cfg.mlp_hidden}
    found = [f"{name}={ours[name]!r} (it has {back[name]!r})" for name in ours if ours[name] != back[name]]
    strange = family.strange(cfg)
    return found + [strange] if strange else found


def _write_folder(folder: Path, contents: dict[str, str | bytes]) -> Path:
    """Puts a folder together under a temporary name, then renames it, so that it is never there by halves."""
    if folder.exists():
        others = [path.name for path in folder.iterdir() if path.name not in HF_FILES]
        if others:
            raise ValueError(f"{shown(folder)} holds other files ({few(others)}): choose a new or an empty folder")
    with clear_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(folder)
        try:
            for file, content in contents.items():
                write_atomic(temporary / file, content)
            if folder.exists():
                shutil.rmtree(folder)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(folder.parent)
    return folder
