"""Multi-token prediction: the losses against a plain loop, and a trunk that learns from them."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from config import ModelConfig
from lab.checks import check_block, randomised
from model import GPT

SMALL = ModelConfig(dim=16, num_layers=1, vocab_size=50, max_seq_len=24, num_q_heads=4, num_kv_heads=2, head_dim=6)
L = "Norm->Attn->+->Norm->MLP->+"
THREE = f"{{{L}}}*2->MultiToken(ahead=cyc(1,2,3),weight=0.5){{{L}}}*3->{{{L}}}"
T = 9


def some_tokens(length: int = T) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, (2, length))


def heads(model: GPT) -> list:
    layer = model.layers[0]
    return [layer.multitoken, layer.multitoken_2, layer.multitoken_3]


def watched(model: GPT) -> list[Tensor]:
    """Where the input of the first head is put at the next call: the trunk's output."""
    kept = []
    heads(model)[0].register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    return kept


def test_losses_are_those_of_a_plain_loop():
    model, tokens = randomised(GPT(SMALL.replace(recipe=THREE))).train(), some_tokens()
    trunk, ctx = watched(model), model.context(tokens)
    model(tokens, ctx)
    assert len(ctx.aux) == 3
    for ahead, head, loss in zip((1, 2, 3), heads(model), ctx.aux.values(), strict=True):
        logits = model.head(model.final_norm(head.inner(trunk[0], model.context(tokens))))
        losses = [F.cross_entropy(logits[b, t][None], tokens[b, t + 1 + ahead][None])
                  for b in range(2) for t in range(T) if t + 1 + ahead < T]  # fmt: skip
        torch.testing.assert_close(loss, 0.5 * torch.stack(losses).mean())


def test_a_token_of_another_document_is_no_target():
    model, tokens = randomised(GPT(SMALL.replace(recipe=THREE))).train(), some_tokens()
    segments = torch.tensor([[0] * 4 + [1] * 5, [0] * 9])
    trunk, ctx = watched(model), model.context(tokens, segments=segments)
    model(tokens, ctx)
    for ahead, head, loss in zip((1, 2, 3), heads(model), ctx.aux.values(), strict=True):
        logits = model.predict(head.inner(trunk[0], model.context(tokens, segments=segments)))
        losses = [F.cross_entropy(logits[b, t][None], tokens[b, t + 1 + ahead][None])
                  for b in range(2) for t in range(T - 1 - ahead)
                  if segments[b, t] == segments[b, t + 1 + ahead]]  # fmt: skip
        torch.testing.assert_close(loss, 0.5 * torch.stack(losses).mean())


def test_outputs_are_those_of_the_model_without_the_heads():
    model, tokens = randomised(GPT(SMALL.replace(recipe=THREE))), some_tokens()
    plain = GPT(SMALL.replace(recipe=f"{{{L}}}*2->{{{L}}}"))
    plain.load_state_dict({name: p for name, p in model.state_dict().items() if "multitoken" not in name})
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(tokens), plain.train(mode)(tokens), rtol=0, atol=0)


def test_outside_of_training_no_head_runs():
    model, tokens = GPT(SMALL.replace(recipe=THREE)).eval(), some_tokens()
    ctx = model.context(tokens)
    model(tokens, ctx)
    assert ctx.aux == {}
    ctx = model.context(tokens, decode=True)
    model(tokens, ctx)
    assert not any("multitoken" in slot for slot in ctx.cache)


def test_the_losses_reach_the_trunk_and_each_its_own_head():
    model, tokens = randomised(GPT(SMALL.replace(recipe=THREE))).train(), some_tokens()
    ctx = model.context(tokens)
    model(tokens, ctx)
    list(ctx.aux.values())[1].backward()
    reached = {name for name, p in model.layers[0].named_parameters() if p.grad is not None and p.grad.any()}
    own = {name for name, _ in model.layers[0].named_parameters() if name.startswith("multitoken_2.")}
    trunk = {name for name in reached if "multitoken" not in name}
    assert {name for name in reached if "multitoken" in name} == own
    assert "attn.Wq.weight" in trunk and "attn_3.Wq.weight" not in trunk, "the last layer is the next token's head"


@pytest.mark.parametrize("length", [1, 2, 3])
def test_rows_too_short_for_a_target_have_no_loss(length):
    model, tokens = GPT(SMALL.replace(recipe=THREE)).train(), some_tokens(length)
    ctx = model.context(tokens)
    model(tokens, ctx)
    assert len(ctx.aux) == max(0, length - 2)


def test_every_check_passes():
    report = check_block(THREE)
    assert report.ok, report


@pytest.mark.parametrize("recipe, message", [
    ("MultiToken(ahead=0){MLP}", "ahead=0 must be a whole number, at least 1"),
    ("MultiToken(weight=0){MLP}", "weight=0 must be positive"),
    ("MultiToken", "needs an inner recipe"),
])  # fmt: skip
def test_what_is_refused(recipe, message):
    with pytest.raises(ValueError, match=message):
        GPT(SMALL.replace(recipe=recipe))


def test_it_cannot_stand_where_there_are_fewer_rows_than_tokens():
    model, tokens = GPT(SMALL.replace(recipe=f"Patch(size=3){{MultiToken{{{L}}}}}->+")).train(), some_tokens()
    with pytest.raises(ValueError, match="MultiToken got 3 rows for 9 tokens"):
        model(tokens)
