"""Configs: defaults that follow from other fields, and one clear error for everything that can't be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import config
from config import PRESETS, ModelConfig, TrainConfig, check_name


def test_derived_sizes_follow_the_fields_they_come_from():
    cfg = ModelConfig(dim=64, num_q_heads=4, mlp_hidden_mult=2.0)
    assert (cfg.head_dim, cfg.mlp_hidden) == (16, 128)
    wide = cfg.replace(dim=128)
    assert (wide.head_dim, wide.mlp_hidden) == (32, 256)
    assert cfg.replace(head_dim=10).replace(dim=128).head_dim == 10, "a size that was given stays"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_json_round_trip(name):
    cfg = PRESETS[name]
    assert ModelConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg


def test_warm_up_follows_the_length_of_the_run():
    assert [TrainConfig(max_iters=n).warmup_iters for n in (10, 4000)] == [0, 80]
    assert TrainConfig(max_iters=4000).replace(max_iters=100).warmup_iters == 2


def test_derived_sizes_stay_derived_in_json():
    cfg = ModelConfig.from_dict(ModelConfig(dim=64, num_q_heads=4).to_dict()).replace(dim=128)
    assert (cfg.head_dim, cfg.mlp_hidden) == (32, 256)


def test_the_half_million_trio_spends_its_parameters_as_it_says():
    trio = {name: cfg for name, cfg in PRESETS.items() if "0.5m_" in name}
    shapes = {n: (c.num_layers, c.num_q_heads, c.num_kv_heads, c.mlp_hidden) for n, c in trio.items()}
    assert shapes == {
        "0.5m_short_and_thick": (4, 16, 4, 256),
        "0.5m_5foot11_and_skinnyfat": (8, 8, 2, 128),
        "0.5m_tall_and_skinny": (10, 10, 2, 64),
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": 0}, ["dim=0", "at least 1"]),
        ({"dim": 64.0}, ["dim=64.0", "int", "float"]),
        ({"dim": True}, ["dim=True", "bool"]),
        ({"dim": "64"}, ["dim='64'", "str"]),
        ({"dim": 65}, ["dim=65", "num_q_heads=4", "head_dim"]),
        ({"num_kv_heads": 3}, ["num_kv_heads=3", "num_q_heads=4", "[1, 2, 4]"]),
        ({"head_dim": 5}, ["head_dim=5", "even"]),
        ({"norm_type": "RMSNrom"}, ["norm_type='RMSNrom'", "did you mean 'RMSNorm'"]),
        ({"mlp_nonlinearity": "swish7"}, ["mlp_nonlinearity='swish7'", "silu"]),
        ({"positions": "rotary"}, ["positions='rotary'", "rope"]),
        ({"dropout_rate": 1.0}, ["dropout_rate=1.0", "[0, 1)"]),
        ({"dropout_rate": float("nan")}, ["dropout_rate=nan"]),
        ({"mlp_hidden_mult": 0.001}, ["mlp_hidden=0", "mlp_hidden_mult"]),
        ({"norm_eps": 0.0}, ["norm_eps=0.0", "positive"]),
        ({"norm_bias": True, "norm_affine": False}, ["norm_bias=True", "norm_affine=True"]),
        ({"logit_cap": 0.0}, ["logit_cap=0.0", "positive", "None"]),
        ({"logit_cap": float("inf")}, ["logit_cap=inf", "finite"]),
        ({"rope_factor": 0.5}, ["rope_factor=0.5", "from 1 up"]),
        ({"rope_factor": float("inf")}, ["rope_factor=inf", "finite"]),
        ({"rope_original_len": 512}, ["rope_original_len=512", "rope_factor above 1"]),
        ({"rope_original_len": 0, "rope_factor": 2.0}, ["rope_original_len=0", "at least 1"]),
        ({"vocab_size": -1}, ["vocab_size=-1"]),
        ({"dmi": 64}, ["ModelConfig has no field 'dmi'", "did you mean 'dim'"]),
    ],
)
def test_a_wrong_model_setting_names_field_rule_and_remedy(changes, words):
    with pytest.raises(ValueError) as error:
        ModelConfig().replace(**changes)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"anneal_type": "cosin"}, ["anneal_type='cosin'", "did you mean 'cosine'"]),
        ({"optimizer": "sgd"}, ["optimizer='sgd'", "adamw", "muon"]),
        ({"precision": "fp16"}, ["precision='fp16'"]),
        ({"device": "gpu"}, ["device='gpu'", "cuda"]),
        ({"lr_max": 0.0}, ["lr_max=0.0", "positive"]),
        ({"lr_min": 1.0}, ["lr_min=1.0", "lr_max"]),
        ({"warmup_iters": 5000}, ["warmup_iters=5000", "max_iters=4000"]),
        ({"beta2": 1.0}, ["beta2=1.0"]),
        ({"num_restarts": 2, "anneal_type": "wsd"}, ["num_restarts=2", "cosine"]),
        ({"T_mult": 0.5}, ["T_mult=0.5", "at least 1"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"model_name": "../escape"}, ["model_name='../escape'"]),
        ({"btach_size": 8}, ["no field 'btach_size'", "did you mean 'batch_size'"]),
    ],
)
def test_a_wrong_training_setting_names_field_rule_and_remedy(changes, words):
    with pytest.raises(ValueError) as error:
        TrainConfig().replace(**changes)
    assert all(word in str(error.value) for word in words), error.value


BAD_NAMES = ["", ".", "..", "a/b", "a\\b", ".hidden", "a.", "con", "NUL.txt", "a b", "x" * 101, "é"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_no_folder_should_have_are_refused(name):
    with pytest.raises(ValueError, match="name="):
        check_name(name)


def test_configs_never_change():
    with pytest.raises(AttributeError):
        ModelConfig().dim = 128


def test_config_imports_no_torch():
    code = "import sys, config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(config.__file__).parent).returncode == 0
