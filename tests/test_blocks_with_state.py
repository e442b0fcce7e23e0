"""Blocks that hand a state on from token to token: what all of them owe to decoding, packing and compiling.

What every block owes is checked by `check_block` (the defaults in test_blocks.py, other arguments here); equations and
sizes of the state stand in each family's own file.
"""

import pytest
import torch
from toy_models import randomised

from config import ModelConfig
from inference import generate
from lab.checks import check_block
from model import GPT
from tokenizer import get_tokenizer

SMALL = ModelConfig(
    dim=32, num_layers=1, vocab_size=50, max_seq_len=160, num_q_heads=4, num_kv_heads=2, head_dim=6, mlp_hidden=80
)
DEFAULTS = ["RGLRU", "ShortConv", "TokenShift", "CEMA", "Mamba", "Mamba2", "GatedDeltaNet"]
OTHERS = [
    "RGLRU(width=48, conv=3, blocks=2)",
    "ShortConv(width=3, bias=true)",
    "CEMA(state=5)",
    "Mamba(state=5, conv=3, expand=3, rank=2)",
    "Mamba2(state=5, heads=6, groups=3, conv=3, expand=3)",
    "GatedDeltaNet(heads=6, key_heads=3, key_dim=5, expand=3, conv=3)",
]
specs = pytest.mark.parametrize("spec", DEFAULTS + OTHERS)
LAYER = "{{Norm->{}->+->Norm->MLP->+}}*2->Norm->Attn->+->Norm->MLP->+"


def model_of(spec: str) -> GPT:
    return randomised(GPT(SMALL.replace(recipe=f"Norm->{spec}->+->Norm->MLP->+")))


def some_tokens(rows: int = 3, length: int = 24) -> torch.Tensor:
    return torch.randint(0, SMALL.vocab_size, (rows, length))


@pytest.mark.parametrize("spec", OTHERS)
def test_generic_checks(spec):
    report = check_block(f"Norm->{spec}->+")
    assert report.ok, str(report)


@specs
def test_rewinding_within_the_last_call_and_not_beyond(spec):
    model, tokens = model_of(spec), some_tokens(length=80)
    ctx = model.context(tokens, decode=True)
    model(tokens[:, :4], ctx)
    model(tokens[:, 4:76], ctx)  # more than a chunk
    lengths = [76, 4, 70]
    ctx.rewind(torch.tensor(lengths))
    after = model(tokens[:, 76:78], ctx)
    for row, length in enumerate(lengths):
        alone = torch.cat((tokens[row, :length], tokens[row, 76:78]))[None]
        torch.testing.assert_close(after[row], model(alone)[0, length:])
    ctx.rewind(torch.tensor([76, 3, 70]))
    with pytest.raises(ValueError, match="rewound by more than the last call's 2 tokens"):
        model(tokens[:, :1], ctx)


@pytest.mark.parametrize("spec", DEFAULTS)
def test_prompts_of_different_length_continue_as_if_alone(spec):
    tok = get_tokenizer("byte")
    cfg = SMALL.replace(vocab_size=tok.vocab_size, max_seq_len=40, recipe=LAYER.format(spec))
    model, prompts = randomised(GPT(cfg)), ["A", "A small boat", "The cat"]
    together = generate(model, tok, prompts, max_new_tokens=60, temperature=0)  # the window is refilled twice
    assert together == [generate(model, tok, p, max_new_tokens=60, temperature=0) for p in prompts]


@specs
def test_packed_documents_do_not_see_one_another(spec):
    model, tokens = model_of(spec), some_tokens(rows=2, length=12)
    segments = torch.tensor([[0] * 5 + [1] * 1 + [0] * 6, [3] * 12])  # a number may come again
    packed = model(tokens, model.context(tokens, segments=segments))
    alone = torch.cat([model(part) for part in tokens[:1].split([5, 1, 6], dim=1)], dim=1)
    torch.testing.assert_close(packed[:1], alone)
    torch.testing.assert_close(packed[1:], model(tokens[1:]))


@specs
def test_packed_documents_are_refused_while_decoding(spec):
    model, tokens = model_of(spec), some_tokens()
    with pytest.raises(ValueError, match="rows of their own"):
        model(tokens, model.context(tokens, decode=True, segments=torch.zeros_like(tokens)))


@pytest.mark.parametrize("spec", DEFAULTS)
def test_compiles_without_a_break(spec):
    model, tokens = model_of(spec), some_tokens()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), model(tokens))
    torch._dynamo.reset()
