"""Bytes in patches: each end against a plain loop, the whole against the inner recipe, causality, decoding."""

import pytest
import torch
from torch import Tensor, nn

from blocks.patches import Patch, Within
from blocks.recipe_layer import RecipeLayer
from config import ModelConfig
from lab.checks import check_block, randomised
from model import GPT, make_context
from recipe import parse

SMALL = ModelConfig(dim=16, num_layers=1, vocab_size=50, max_seq_len=30, num_q_heads=4, num_kv_heads=2, head_dim=6)
L = "Norm->Attn->+->Norm->MLP->+"
MEGABYTE = f'Norm->=->Patch(size=4,pool="concat"){{{{{L}}}*2}}->+->Within(size=4,ahead=true){{{L}}}'
STLM = f"Norm->=->Within(size=3){{{L}}}->=->Patch(size=3){{{L}}}->+->Within(size=3,ahead=true){{{L}}}"
T = 11
lengths = pytest.mark.parametrize("T", [1, 3, 4, 5, 8, 11])


class Spy(nn.Module):
    """An inner recipe that gives back its input and remembers what it was called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x: Tensor, ctx) -> Tensor:
        self.calls.append((x, ctx))
        return x


def inner(cfg: ModelConfig = SMALL) -> RecipeLayer:
    return randomised(RecipeLayer(cfg, parse(L)))


def bytes_in(T: int = T, rows: int = 2) -> Tensor:
    return torch.randn(rows, T, SMALL.dim)


# ---------------------------------------------------------------- the two ends, each by itself


@pytest.mark.parametrize("pool", ["mean", "concat"])
def test_the_pool_makes_one_vector_of_each_patch(pool):
    patch, x = randomised(Patch(SMALL, Spy(), size=4, pool=pool)), bytes_in()
    patch(x)
    ((patches, _),) = patch.inner.calls
    assert patches.shape == (2, 2, SMALL.dim), "the three bytes of the last patch are not full"
    for p in range(2):
        piece = [x[:, 4 * p + i] for i in range(4)]
        expected = sum(piece) / 4 if pool == "mean" else patch.Wpool(torch.cat(piece, dim=-1))
        torch.testing.assert_close(patches[:, p], expected)


@lengths
def test_each_row_gets_its_slice_of_the_last_full_patch(T):
    patch, x, D = randomised(Patch(SMALL, Spy(), size=4)), bytes_in(T), SMALL.dim
    y = patch(x)
    for t in range(T):
        p, j = (t + 1) // 4 - 1, (t + 1) % 4
        if p < 0:
            expected = patch.start.expand(2, D)
        else:
            expected = x[:, 4 * p : 4 * p + 4].mean(dim=1) @ patch.Wspread.weight[j * D : (j + 1) * D].T
        torch.testing.assert_close(y[:, t], expected)


@lengths
def test_an_encoder_reads_each_patch_by_itself(T):
    module, x = inner(), bytes_in(T)
    pieces = [module(piece, make_context(SMALL, piece)) for piece in x.split(4, dim=1)]
    torch.testing.assert_close(Within(SMALL, module, size=4)(x), torch.cat(pieces, dim=1))


@lengths
def test_a_decoder_reads_the_rows_that_predict_a_patch(T):
    decoder, x = randomised(Within(SMALL, inner(), size=4, ahead=True)), bytes_in(T)
    rows = torch.cat((decoder.start.expand(2, 1, -1), x), dim=1)  # row t predicts byte t: the first from no byte
    pieces = [decoder.inner(piece, make_context(SMALL, piece)) for piece in rows.split(4, dim=1)]
    torch.testing.assert_close(decoder(x), torch.cat(pieces, dim=1)[:, 1:])


# ---------------------------------------------------------------- the whole


@pytest.mark.parametrize("wrapper", ["Patch(size=1)", 'Patch(size=1,pool="concat")'])
def test_a_patch_of_one_byte_is_the_plain_model(wrapper):
    plain = randomised(GPT(SMALL.replace(recipe=L)))
    model = GPT(SMALL.replace(recipe=f"{wrapper}{{{L}}}"))
    model.load_state_dict({name.replace("layers.0.", "layers.0.patch.inner."): p
                           for name, p in plain.state_dict().items()})  # fmt: skip
    tokens = torch.randint(0, SMALL.vocab_size, (3, T))
    torch.testing.assert_close(model(tokens), plain(tokens), rtol=0, atol=0)
    ctx = model.context(tokens, decode=True)
    steps = torch.cat([model(tokens[:, t : t + 1], ctx) for t in range(T)], dim=1)
    torch.testing.assert_close(steps, plain(tokens))


def test_patches_of_one_byte_lose_sight_of_each_other_within():
    module, x = inner(), bytes_in()
    expected = torch.cat([module(x[:, t : t + 1], make_context(SMALL, x[:, :1])) for t in range(T)], dim=1)
    for ahead in (False, True):
        torch.testing.assert_close(Within(SMALL, module, size=1, ahead=ahead)(x), expected)


def test_the_inner_recipe_counts_in_patches():
    patch, x = Patch(SMALL, Spy(), size=4), bytes_in()
    ctx = make_context(SMALL, x).at("outer")
    ctx.taps["a"] = x
    patch(x, ctx)
    _, inside = patch.inner.calls[0]
    assert inside.positions.tolist() == [0, 1]
    assert inside.rope[0].shape == (2, SMALL.head_dim // 2)
    assert (inside.slot, inside.taps) == ("outer.inner", {}) and inside.aux is ctx.aux


def test_a_patch_reaches_every_byte_behind_it_and_none_of_its_own():
    patch = randomised(Patch(SMALL, inner(), size=4))
    x = bytes_in(13, rows=1).requires_grad_()
    y = patch(x)
    for t in range(13):
        (gradient,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True, allow_unused=True)
        read = gradient.abs().sum(dim=-1)[0].nonzero().flatten().tolist()
        assert read == list(range((t + 1) // 4 * 4)), f"what row {t} depends on"


@pytest.mark.parametrize("ahead", [False, True])
def test_within_a_patch_no_row_reaches_another_patch(ahead):
    block = randomised(Within(SMALL, inner(), size=4, ahead=ahead))
    x = bytes_in(13, rows=1).requires_grad_()
    y = block(x)
    for t in range(13):
        (gradient,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
        read = gradient.abs().sum(dim=-1)[0].nonzero().flatten().tolist()
        first = (t + ahead) // 4 * 4 - ahead
        assert read == list(range(max(first, 0), t + 1)), f"what row {t} depends on"


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize("recipe", [MEGABYTE, STLM])
@pytest.mark.parametrize("widths", [[1] * T, [4, 4, 3], [2, 7, 1, 1], [3, 1, 6, 1], [T]])
def test_decoding_equals_the_full_forward(recipe, widths):
    model = randomised(GPT(SMALL.replace(recipe=recipe)))
    tokens = torch.randint(0, SMALL.vocab_size, (3, T))
    ctx = model.context(tokens, decode=True)
    parts = [model(piece, ctx) for piece in tokens.split(widths, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens))


@pytest.mark.parametrize("recipe", [MEGABYTE, STLM])
@pytest.mark.parametrize("kept", [(9, 5, 2), (8, 7, 6), (9, 9, 1)])
def test_rows_out_of_step_decode_as_if_alone(recipe, kept):
    model = randomised(GPT(SMALL.replace(recipe=recipe)))
    tokens, more = torch.randint(0, SMALL.vocab_size, (3, 9)), torch.randint(0, SMALL.vocab_size, (3, 8))
    ctx = model.context(tokens, decode=True)
    model(tokens, ctx)
    ctx.rewind(torch.tensor(kept))
    parts = torch.cat([model(piece, ctx) for piece in more.split([1, 1, 4, 1, 1], dim=1)], dim=1)
    for b, length in enumerate(kept):
        alone = model(torch.cat((tokens[b : b + 1, :length], more[b : b + 1]), dim=1))
        torch.testing.assert_close(parts[b], alone[0, length:])


def test_a_row_can_be_decoded_up_to_its_last_place():
    model = randomised(GPT(SMALL.replace(recipe=MEGABYTE)))  # max_seq_len=30 is no multiple of 4
    tokens = torch.randint(0, SMALL.vocab_size, (2, 30))
    ctx = model.context(tokens, decode=True)
    model(tokens[:, :20], ctx)
    ctx.rewind(torch.tensor([20, 17]))
    parts = torch.cat([model(tokens[:, t : t + 1], ctx) for t in range(20, 30)], dim=1)
    torch.testing.assert_close(parts[0], model(tokens)[0, 20:])


def test_the_inner_recipe_runs_once_for_each_full_patch():
    patch, x = randomised(Patch(SMALL, Spy(), size=4)), bytes_in()
    ctx = make_context(SMALL, x)
    ctx.cache = {}
    for t in range(T):
        ctx.seen, ctx.span, ctx.positions = torch.full((2,), t), t, torch.full((2, 1), t)
        patch(x[:, t : t + 1], ctx)
    assert [call.shape for call, _ in patch.inner.calls] == [(2, 1, SMALL.dim)] * 2
    assert [inside.positions.tolist() for _, inside in patch.inner.calls] == [[[0], [0]], [[1], [1]]]


def test_the_decode_state_has_the_size_that_is_documented():
    model = randomised(GPT(SMALL.replace(recipe=f"Patch(size=4){{{L}}}->+->Within(size=4,ahead=true){{{L}}}")))
    tokens = torch.randint(0, SMALL.vocab_size, (3, T))
    ctx = model.context(tokens, decode=True)
    with torch.no_grad():
        model(tokens, ctx)
    sizes = {slot.split(".", 1)[1]: state.numel() // 3 for slot, state in ctx.cache.items()}
    length, D = SMALL.max_seq_len, SMALL.dim
    keys_and_values = 2 * SMALL.num_kv_heads * SMALL.head_dim * length
    assert sizes == {"patch.bytes": length * D, "patch.patches": -(-length // 4) * D, "within": length * D,
                     "patch.inner.attn": keys_and_values}  # fmt: skip


# ---------------------------------------------------------------- the rest


@pytest.mark.parametrize("recipe", ["Patch", 'Patch(size=5,pool="concat"){MLP}->+', "Within", MEGABYTE, STLM])
def test_every_check_passes(recipe):
    report = check_block(recipe)
    assert report.ok, report


@pytest.mark.parametrize("recipe, message", [
    ("Patch(size=0){MLP}", "size=0 must be a whole number of bytes, at least 1"),
    ("Within(size=2.5){MLP}", "size=2.5 must be"),
    ('Patch(pool="max"){MLP}', "pool='max' is unknown; choose from mean, concat"),
    ("Patch(size=4)", "needs an inner recipe"),
])  # fmt: skip
def test_what_is_refused(recipe, message):
    with pytest.raises(ValueError, match=message):
        GPT(SMALL.replace(recipe=recipe))


@pytest.mark.parametrize("name", ["Patch", "Within"])
def test_packed_documents_are_refused(name):
    model = GPT(SMALL.replace(recipe=f"{name}(size=4){{{L}}}"))
    tokens = torch.zeros(1, T, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"{name} can't keep the documents of a packed row apart"):
        model(tokens, model.context(tokens, segments=torch.arange(T)[None] // 5))


def test_memory_reaches_every_group():
    block, x = Within(SMALL, Spy(), size=4), bytes_in()
    ctx = make_context(SMALL, x)
    ctx.memory = torch.randn(2, 7, SMALL.dim)
    block(x, ctx)
    _, inside = block.inner.calls[0]
    torch.testing.assert_close(inside.memory, ctx.memory[[0, 0, 0, 1, 1, 1]])
