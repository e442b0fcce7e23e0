"""The MLP and its nonlinearities against transformers' own."""

import pytest
import torch

from config import ModelConfig
from model import MLP, NONLINEARITIES

transformers = pytest.importorskip("transformers")

CFG = ModelConfig(dim=24, num_q_heads=4, num_kv_heads=2, mlp_hidden=40, vocab_size=97)
NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "relu2": "relu2", "tanh": "tanh",
         "sigmoid": "sigmoid"}  # fmt: skip


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_nonlinearities_are_those_of_transformers(name):
    from transformers.activations import ACT2FN

    z = torch.linspace(-6, 6, 501)
    torch.testing.assert_close(NONLINEARITIES[name](z), ACT2FN[NAMES[name]](z), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu"])
def test_the_gated_mlp_is_llamas(name):
    """SwiGLU, GeGLU and ReGLU: Shazeer 2020, arXiv 2002.05202."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4}
    theirs = LlamaMLP(transformers.LlamaConfig(**sizes, hidden_act=NAMES[name]))
    ours = MLP(CFG.replace(mlp_nonlinearity=name))
    with torch.no_grad():
        for mine, other in ((ours.Wgate, theirs.gate_proj), (ours.Wup, theirs.up_proj), (ours.Wdown, theirs.down_proj)):
            mine.weight.copy_(other.weight)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_the_plain_mlp_with_squared_relu_is_nemotrons():
    from transformers.models.nemotron.modeling_nemotron import NemotronMLP

    theirs = NemotronMLP(transformers.NemotronConfig(hidden_size=24, intermediate_size=40, hidden_act="relu2"))
    ours = MLP(CFG.replace(mlp_nonlinearity="relu2", mlp_gated=False))
    with torch.no_grad():
        ours.Wup.weight.copy_(theirs.up_proj.weight)
        ours.Wdown.weight.copy_(theirs.down_proj.weight)
    x = torch.randn(2, 7, 24)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
