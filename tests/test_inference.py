"""The sampler: filters against closed forms, the cache against full forwards, batches against single prompts."""

import math
import random
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inference
from benchmarks.ablations import CONVOLVED
from config import PRESETS
from inference import Choice, generate, last_logits, new_tokens, next_token_logits, next_token_probabilities, window
from lab.folded_decoder import FoldedDecoder, why_not_folded
from model import GPT, MLP
from tokenizer import get_tokenizer

ROOT = Path(__file__).resolve().parent.parent
LIMIT = PRESETS["debug"].max_seq_len  # 64
PROMPTS = ["Hi", "Once upon a time there was", "", "A boat. " * 7]  # of different lengths, in bytes: 2, 26, 0, 56


@pytest.fixture(scope="module")
def tok():
    return get_tokenizer("byte")


def random_model(seed: int = 0, std: float = 0.3, **changes) -> GPT:
    """A model of which every parameter is random: as made, its blocks add nothing."""
    model = GPT(PRESETS["debug"].replace(vocab_size=260, **changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, std, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return random_model()


def scripted_model(tok, data: bytes) -> GPT:
    """A model that is sure to write these bytes, then EOS: all but the position is zero, so that it alone decides."""
    ids = [4 + byte for byte in data] + [tok.eos_id]
    sizes = dict(vocab_size=260, dim=260, num_layers=1)
    model = GPT(PRESETS["debug"].replace(**sizes, positions="learned", tied_head=False))
    with torch.no_grad():
        for matrix in model.parameters():
            matrix.zero_()
        model.final_norm.weight.fill_(1.0)
        model.position_embed.weight[range(len(ids)), ids] = 1.0
        model.head.weight.copy_(100 * torch.eye(260))
    return model


# ---------------------------------------------------------------- filters

TINY = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03], dtype=torch.float64)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(temperature=1), [0.5, 0.25, 0.15, 0.07, 0.03]),
        (dict(temperature=0), [1, 0, 0, 0, 0]),
        (dict(temperature=0.5), [p * p for p in TINY.tolist()]),
        (dict(temperature=2), [math.sqrt(p) for p in TINY.tolist()]),
        (dict(temperature=1e-320), [1, 0, 0, 0, 0]),
        (dict(temperature=1e300), [1, 1, 1, 1, 1]),
        (dict(temperature=1, top_k=1), [1, 0, 0, 0, 0]),
        (dict(temperature=1, top_k=2), [0.5, 0.25, 0, 0, 0]),
        (dict(temperature=1, top_k=99), [0.5, 0.25, 0.15, 0.07, 0.03]),
        (dict(temperature=1, top_p=0.4), [1, 0, 0, 0, 0]),
        (dict(temperature=1, top_p=0.76), [0.5, 0.25, 0.15, 0, 0]),
        (dict(temperature=1, top_p=1.0), [0.5, 0.25, 0.15, 0.07, 0.03]),
        (dict(temperature=1, min_p=0.0), [0.5, 0.25, 0.15, 0.07, 0.03]),
        (dict(temperature=1, min_p=0.2), [0.5, 0.25, 0.15, 0, 0]),
        (dict(temperature=1, min_p=1.0), [1, 0, 0, 0, 0]),
        # in this order: of 0.5, 0.25, 0.15 the first two are 0.833 of what top_k left, but 0.75 of the whole
        (dict(temperature=1, top_k=3, top_p=0.8), [0.5, 0.25, 0, 0, 0]),
        # temperature comes first: 0.0225 / 0.25 is below 0.2 only after squaring
        (dict(temperature=0.5, min_p=0.2), [0.25, 0.0625, 0, 0, 0]),
        (dict(temperature=1, top_k=4, top_p=0.95, min_p=0.4), [0.5, 0.25, 0, 0, 0]),
    ],
)
def test_filters_give_the_closed_form_distribution(settings, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    shuffle = torch.tensor([3, 0, 4, 2, 1])  # the likeliest token must not have to be the first
    found = Choice(**settings).probabilities((TINY.log() + 7)[shuffle])
    torch.testing.assert_close(found, (expected / expected.sum())[shuffle])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([2, 5, 127, 128, 129, 400]),
    temperature=st.floats(0.01, 5),
    top_k=st.none() | st.integers(1, 500),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 1),
)
def test_filters_equal_a_plain_calculation(seed, size, temperature, top_k, top_p, min_p):
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(seed)) * 2
    found = Choice(temperature, top_k, top_p, min_p).probabilities(logits)
    for row, result in zip(logits.tolist(), found.tolist()):
        assert result == pytest.approx(plainly(row, temperature, top_k, top_p, min_p), abs=1e-12)


def plainly(logits, temperature, top_k, top_p, min_p):
    """The four filters as one would do them by hand, token by token."""
    weights = {i: math.exp((value - max(logits)) / temperature) for i, value in enumerate(logits)}
    order = sorted(weights, key=lambda i: -logits[i])[: top_k or len(logits)]
    total, kept, so_far = sum(weights[i] for i in order), [], 0.0
    for i in order:
        if top_p is None or top_p == 1 or so_far < top_p * total:
            kept.append(i)
        so_far += weights[i]
    kept = [i for i in kept if weights[i] >= (min_p or 0) * weights[kept[0]]]
    return [weights[i] / sum(weights[j] for j in kept) if i in kept else 0.0 for i in range(len(logits))]


def test_top_p_keeps_as_many_as_it_takes():
    assert (Choice(1.0, top_p=0.901).probabilities(torch.zeros(400)) > 0).sum() == 361
    likely_or_flat = torch.stack([torch.arange(400.0) * 10, torch.zeros(400)])  # one row of the batch needs more
    assert (Choice(1.0, top_p=0.501).probabilities(likely_or_flat) > 0).sum(-1).tolist() == [1, 201]


def test_top_k_keeps_tokens_that_tie_with_the_kth():
    found = Choice(temperature=1, top_k=2).probabilities(torch.tensor([1.0, 2.0, 1.0, 0.0]))
    assert (found > 0).tolist() == [True, True, True, False]


def test_picks_follow_the_distribution():
    choose, generator, n = Choice(temperature=1, top_k=4), random.Random(0), 20_000
    expected = choose.probabilities(TINY.log())
    picks = choose.pick(TINY.log().expand(n, -1), [generator.random() for _ in range(n)])
    counts = torch.tensor(picks).bincount(minlength=5)
    assert counts[4] == 0
    chi_square = ((counts - n * expected)[:4] ** 2 / (n * expected)[:4]).sum()
    assert chi_square < 16.3  # 3 degrees of freedom: exceeded once in 1,000 seeds


@pytest.mark.parametrize(("draw", "token"), [(0.0, 1), (0.4999, 1), (0.5, 3), (1 - 2**-53, 3)])
def test_a_draw_at_the_edge_never_picks_an_impossible_token(draw, token):
    logits = torch.tensor([-1e9, 0.0, -1e9, 0.0, -1e9])
    assert Choice(temperature=1).pick(logits[None], [draw]) == [token]


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize(
    "changes",
    [{}, dict(positions="learned"), dict(positions="sinusoidal"), dict(positions="none"), dict(qk_norm=True)],
    ids=str,
)
def test_cached_logits_equal_a_full_forward_at_every_position_and_past_the_end(changes, monkeypatch):
    model, seen = random_model(**changes), []
    monkeypatch.setattr(Choice, "pick", lambda self, logits, draws: seen.append(logits) or logits.argmax(-1).tolist())
    ids = [1, 50, 60]
    steps = new_tokens(model, [ids], Choice(0), [random.Random()], max_new_tokens=150)
    new = [step[0] for step in steps]
    assert len(new) == len(seen) == 150
    text, start = list(ids), 0
    for token, logits in zip(new, seen):
        if len(text) - start > LIMIT:  # the documented rule, written down a second time
            start = len(text) - LIMIT // 2
        with torch.no_grad():
            expected = model(torch.tensor([text[start:]]))[:, -1]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        text.append(token)
    assert start > LIMIT  # the window has moved more than once


def test_the_model_gets_one_token_per_step_until_its_window_is_full(model, tok, monkeypatch):
    lengths, features = [], GPT.features
    monkeypatch.setattr(
        GPT, "features", lambda self, tokens, ctx=None: lengths.append(tokens.shape[1]) or features(self, tokens, ctx)
    )
    list(new_tokens(model, [[1, 5, 6]], Choice(0), [random.Random()], max_new_tokens=LIMIT + 40))
    # 61 single tokens after the prompt fill all 64 places, 32 more after the first refill
    assert lengths == [3] + [1] * 61 + [32] + [1] * 32 + [32] + [1] * 8


def test_last_logits_of_padded_rows_equal_each_row_alone(model):
    rows = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    with torch.no_grad():
        padded, ctx = last_logits(model, rows, decode=True)
        alone = torch.cat([model(torch.tensor([row]))[:, -1] for row in rows])
        following = model(torch.tensor([[11], [12], [13]]), ctx)[:, -1]
        after = torch.cat([model(torch.tensor([row + [11 + i]]))[:, -1] for i, row in enumerate(rows)])
    torch.testing.assert_close(padded, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(following, after, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_context_of_a_few_tokens_works(tok, length):
    model = random_model(max_seq_len=length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast, slow = (generate(model, tok, "ab", temperature=0, max_new_tokens=9, use_cache=c) for c in (True, False))
    assert fast == slow


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("max_new_tokens", [0, 1, 30, 150])
def test_prompts_of_different_lengths_give_what_each_gives_alone(model, tok, max_new_tokens):
    together = generate(model, tok, PROMPTS, temperature=0, max_new_tokens=max_new_tokens)
    alone = [generate(model, tok, p, temperature=0, max_new_tokens=max_new_tokens) for p in PROMPTS]
    uncached = [generate(model, tok, p, temperature=0, max_new_tokens=max_new_tokens, use_cache=False) for p in PROMPTS]
    assert together == alone == uncached
    assert all(text.startswith(prompt) for text, prompt in zip(together, PROMPTS))


def test_with_a_seed_text_i_is_what_its_prompt_gives_with_seed_plus_i(model, tok):
    settings = dict(temperature=1.0, top_p=0.9, max_new_tokens=100)
    together = generate(model, tok, PROMPTS, seed=5, **settings)
    assert together == [generate(model, tok, p, seed=5 + i, **settings) for i, p in enumerate(PROMPTS)]
    assert len(set(generate(model, tok, ["same"] * 4, seed=5, **settings))) == 4


def test_a_row_that_ends_early_leaves_the_others_alone(tok):
    models = {seed: random_model(seed) for seed in range(30)}
    texts = {}
    for seed, model in models.items():  # EOS is one of 260 ids, so that some rows end within 150 tokens, others do not
        texts[seed] = generate(model, tok, PROMPTS, temperature=1.5, seed=seed, max_new_tokens=150)
        steps = [len(text.encode()) for text in texts[seed]]
        if min(steps) < 100 < max(steps):
            break
    alone = [generate(model, tok, p, temperature=1.5, seed=seed + i, max_new_tokens=150) for i, p in enumerate(PROMPTS)]
    assert texts[seed] == alone


def test_ended_rows_are_left_out_when_the_cache_is_refilled(model, monkeypatch):
    sizes, features = [], GPT.features
    monkeypatch.setattr(
        GPT, "features", lambda self, tokens, ctx=None: sizes.append(len(tokens)) or features(self, tokens, ctx)
    )
    turns = iter(range(1000))
    monkeypatch.setattr(Choice, "pick", lambda self, logits, draws: [2 if next(turns) == 30 else 9 for _ in draws])
    steps = list(new_tokens(model, [[1], [1], [1]], Choice(), [random.Random()] * 3, max_new_tokens=80, stop_id=2))
    assert sizes == [3] * LIMIT + [2] * (80 - LIMIT)
    assert [step.count(None) for step in steps] == [0] * 10 + [1] * 70


def test_a_seed_repeats_and_no_random_state_is_touched(model, tok):
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    first = generate(model, tok, "Hi", seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert generate(model, tok, "Hi", seed=3) == first
    assert generate(model, tok, "Hi", seed=4) != first
    assert generate(model, tok, "Hi") != generate(model, tok, "Hi")


def test_fewer_tokens_give_a_prefix(model, tok):
    short, long = (generate(model, tok, "Hi", seed=3, max_new_tokens=n) for n in (10, 50))
    assert long.startswith(short.rstrip("\ufffd"))  # cut within a character


def test_an_empty_prompt_starts_from_bos(tok):
    assert generate(scripted_model(tok, b"Hi"), tok, "") == "Hi"  # what follows position 0, which is BOS's


def test_an_empty_list_of_prompts_gives_an_empty_list(model, tok):
    assert generate(model, tok, []) == []


def test_a_prompt_longer_than_the_context_warns_and_goes_on_from_its_last_half_window(model, tok):
    prompt = "x" * 40 + "This is the end of it all, she said."
    with pytest.warns(UserWarning, match=f"prompt has 77 tokens, more than max_seq_len={LIMIT}.* last {LIMIT // 2}"):
        text = generate(model, tok, prompt, temperature=0, max_new_tokens=1)
    assert text.startswith(prompt)
    with torch.no_grad():
        likeliest = model(torch.tensor([tok.encode(prompt)[-LIMIT // 2 :]]))[0, -1].argmax().item()
    assert text == prompt + tok.token_bytes(likeliest).decode(errors="replace")


def test_a_prompt_that_just_fits_is_seen_whole(model, tok):
    prompt = "x" * (LIMIT - 1)  # and BOS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, tok, prompt, max_new_tokens=2)
    assert window(list(range(LIMIT)), model) == list(range(LIMIT))
    assert window(list(range(LIMIT + 1)), model) == list(range(LIMIT + 1))[-LIMIT // 2 :]


def test_unknown_characters_of_a_prompt_are_counted_in_a_warning(tok, model, monkeypatch):
    monkeypatch.setattr(type(tok), "unknown_count", lambda self, text: text.count("é"))
    with pytest.warns(UserWarning, match="no token for 2 of the prompt's 8 characters"):
        assert generate(model, tok, "café olé", max_new_tokens=1).startswith("café olé")


# ---------------------------------------------------------------- the folded decoder

SHAPES = {
    "debug": {},
    "QK-norm": dict(qk_norm=True),
    "post_norm, biases": dict(post_norm=True, qk_norm=True, mlp_bias=True, norm_bias=True),
    "plain MLP": dict(mlp_gated=False, mlp_nonlinearity="relu2", mlp_bias=True),
    "one group": dict(num_kv_heads=1),
    "a group for each head": dict(num_kv_heads=4, tied_head=False, scale_first_residual=True),
    "partial rope": dict(rope_dim=4, qk_norm=True),
    "interleaved": dict(positions="rope_interleaved", qk_norm=True),
    "interleaved, partial": dict(positions="rope_interleaved", rope_dim=6),
    "odd heads without RoPE": dict(positions="none", head_dim=7, qk_norm=True),
    "narrow embedding": dict(embed_dim=12, scale_first_residual=True),
    "recipe": dict(recipe="Norm->Attn->Norm->+->Norm->MLP->Norm->+"),
    "the winner's": dict(recipe=CONVOLVED, qk_norm=True, embed_dim=12, logit_cap=3.0),
    "convolutions, biases": dict(
        recipe="Norm->ShortConv(width=3,bias=true)->Attn(bias=true)->+->Norm->ShortConv(width=1)->MLP->+",
        norm_bias=True,
        mlp_bias=True,
    ),
    "wide convolution": dict(recipe="Norm->Attn->+->Norm->ShortConv(width=70)->MLP->+"),
    "value residual": dict(recipe="Norm->ValueResidualAttn->+->Norm->MLP->+", num_layers=3, qk_norm=True),
    "LayerNorm": dict(norm_type="LayerNorm", norm_bias=True, mlp_bias=True, positions="learned"),
    "LayerNorm, convolutions": dict(norm_type="LayerNorm", recipe=CONVOLVED, norm_eps=0.3),
    "no scales": dict(norm_affine=False, post_norm=True, norm_eps=0.3),
    "alibi": dict(positions="alibi", num_q_heads=6, head_dim=5),
    **{name: dict(positions=name) for name in ("none", "learned", "sinusoidal")},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rows", [[[1, 8, 9]], [[1, 7], [1], [1, *range(30, 60)]]], ids=["alone", "of all lengths"])
def test_folded_steps_give_the_models_logits(name, rows):
    model, rows = random_model(std=0.15, **SHAPES[name]), [list(row) for row in rows]
    decoder = FoldedDecoder(model)
    with torch.inference_mode():
        expected, ctx = last_logits(model, rows, decode=True)
        decoder.start(last_logits(model, rows, decode=True)[1])
        for step in range(20):
            found = decoder.step([row[-1] for row in rows])
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max(), f"step {step}"
            for i, row in enumerate(rows):
                row.append(10 * i + step)
            expected = model(torch.tensor([row[-1:] for row in rows]), ctx)[:, -1]


@pytest.mark.parametrize("choose", [Choice(0), Choice(1.0), Choice(1.0, top_p=0.9)], ids=str)
@pytest.mark.parametrize("name", ["debug", "the winner's", "value residual", "alibi"])
def test_folded_steps_give_the_same_text_past_full_windows(name, choose):
    model = random_model(seed=1, **SHAPES[name])  # with 0, debug has a tie at the nucleus' edge
    prompts = [[1, 70], [1], [1, *range(40, 75)], [1, 9, 9]]
    plain, folded = (
        list(new_tokens(model, prompts, choose, inference._generators(0, 4), max_new_tokens=200, stop_id=2, folded=way))
        for way in (False, True)
    )
    assert folded == plain


def test_folded_steps_do_not_call_the_model(model, tok, monkeypatch):
    calls, features = [], GPT.features
    monkeypatch.setattr(GPT, "features", lambda *args: calls.append(1) or features(*args))
    generate(model, tok, "Hi", max_new_tokens=50, compiled=False)
    assert len(calls) == 1


def test_what_the_folded_decoder_does_not_know_is_left_to_the_model(tok):
    windowed = random_model(recipe="Norm->Attn(window=5)->+->Norm->MLP->+")
    assert why_not_folded(windowed) == "attention has a window"
    assert why_not_folded(random_model(head_dim=7, rope_dim=4)) == "head_dim=7 is odd"
    behind = random_model(norm_type="LayerNorm", recipe="Norm->Attn->+->Norm->MLP->Norm->+")
    assert why_not_folded(behind) == "a LayerNorm stands behind a block"
    settings = dict(seed=0, max_new_tokens=30, compiled=False)
    assert generate(windowed, tok, "Hi", **settings) == generate(windowed, tok, "Hi", use_cache=False, **settings)


def test_the_folded_decoder_notices_a_block_that_was_changed(model, tok, monkeypatch):
    forward = MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x, ctx=None: 1.1 * forward(self, x, ctx))
    settings = dict(seed=0, max_new_tokens=30, compiled=False)
    with pytest.warns(UserWarning, match=r"folded decoder's logits differ .* was a block changed\?"):
        text = generate(model, tok, "Hi", **settings)
    assert text == generate(model, tok, "Hi", use_cache=False, **settings)


# ---------------------------------------------------------------- the text that comes out

EMOJI = "a🐢é 👩‍🚀ü."


def test_a_stream_gives_whole_characters_and_joins_to_the_text(tok):
    pieces = list(generate(scripted_model(tok, EMOJI.encode()), tok, "", stream=True))
    assert pieces == list(EMOJI)
    assert generate(scripted_model(tok, EMOJI.encode()), tok, "") == EMOJI


def test_a_stream_begins_with_the_prompt_and_equals_the_text(model, tok):
    for seed in range(5):  # random bytes: most are broken UTF-8
        settings = dict(temperature=1.3, seed=seed, max_new_tokens=90)
        pieces = list(generate(model, tok, "Hé", stream=True, **settings))
        assert pieces[0] == "Hé"
        assert "".join(pieces) == generate(model, tok, "Hé", **settings)
        assert all(pieces)


def test_a_character_cut_off_at_the_end_is_shown_as_a_replacement(tok):
    turtle = "🐢".encode()
    assert generate(scripted_model(tok, b"a" + turtle), tok, "", max_new_tokens=3) == "a\ufffd"
    assert list(generate(scripted_model(tok, b"a" + turtle), tok, "", max_new_tokens=3, stream=True)) == ["a", "\ufffd"]


def test_it_stops_at_the_end_of_the_text(tok):
    model = scripted_model(tok, b"The end.")
    assert generate(model, tok, "", max_new_tokens=50) == "The end."
    assert generate(model, tok, "", max_new_tokens=7) == "The end"
    assert generate(model, tok, "", max_new_tokens=0) == ""


def test_a_stream_is_lazy_but_checks_at_once(model, tok, monkeypatch):
    calls, features = [], GPT.features
    monkeypatch.setattr(GPT, "features", lambda *args: calls.append(1) or features(*args))
    stream = generate(model, tok, "Hi", stream=True)
    assert next(stream) == "Hi" and not calls
    next(stream)
    assert len(calls) < 10
    with pytest.raises(ValueError, match="temperature"):
        generate(model, tok, "Hi", stream=True, temperature=-1)


# ---------------------------------------------------------------- the model's mode


def test_eval_mode_meanwhile_and_the_earlier_mode_of_each_module_afterwards(tok):
    model = random_model(dropout_rate=0.5)
    quiet = generate(model, tok, "Hi", temperature=0, max_new_tokens=20)
    model.train()
    model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    assert generate(model, tok, "Hi", temperature=0, max_new_tokens=20) == quiet
    assert [module.training for module in model.modules()] == modes
    stream = generate(model, tok, "Hi", stream=True)
    next(stream), next(stream)
    assert not model.training
    stream.close()
    assert [module.training for module in model.modules()] == modes


def test_no_gradients_and_no_inference_mode_outside(model, tok, monkeypatch):
    inside, features = [], GPT.features
    monkeypatch.setattr(
        GPT, "features", lambda *args: inside.append(torch.is_inference_mode_enabled()) or features(*args)
    )
    stream = generate(model, tok, "Hi", stream=True)
    next(stream), next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert inside and all(inside)
    assert model(torch.tensor([[1, 2]])).requires_grad


def test_the_mode_comes_back_after_an_error(tok):
    model = random_model()
    model.train()
    with torch.no_grad():
        model.final_norm.weight[3] = math.nan
    with pytest.raises(FloatingPointError):
        generate(model, tok, "Hi")
    assert model.training


# ---------------------------------------------------------------- looking at the next token


def test_next_token_probabilities_are_the_softmax_of_the_full_forward(model, tok):
    found = next_token_probabilities(model, tok, "Once", k=7)
    with torch.no_grad():
        probs = model(torch.tensor([tok.encode("Once")]))[0, -1].softmax(-1)
    values, ids = probs.topk(7)
    assert [piece for piece, _ in found] == [tok.piece(i) for i in ids.tolist()]
    assert [p for _, p in found] == pytest.approx(values.tolist(), rel=1e-4)
    everything = next_token_probabilities(model, tok, "", k=10_000)
    assert len(everything) == 260 and sum(p for _, p in everything) == pytest.approx(1)
    assert next_token_logits(model, tok, "Once").shape == (260,)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (ValueError, "temperature=-0.1 must be .* 0", dict(temperature=-0.1)),
        (ValueError, "temperature=nan", dict(temperature=math.nan)),
        (ValueError, "temperature=inf", dict(temperature=math.inf)),
        (TypeError, "temperature='hot' is of type str", dict(temperature="hot")),
        (TypeError, "temperature=True", dict(temperature=True)),
        (ValueError, "top_k=0 must be 1 or more", dict(top_k=0)),
        (TypeError, "top_k=2.5 .* whole number", dict(top_k=2.5)),
        (ValueError, "top_p=0 must be above 0", dict(top_p=0)),
        (ValueError, "top_p=1.1 must be .* at most 1", dict(top_p=1.1)),
        (ValueError, "top_p=nan", dict(top_p=math.nan)),
        (ValueError, "min_p=-0.1 must be from 0 to 1", dict(min_p=-0.1)),
        (ValueError, "min_p=2 must be from 0 to 1", dict(min_p=2)),
        (ValueError, "max_new_tokens=-1 must be 0 or more", dict(max_new_tokens=-1)),
        (TypeError, "max_new_tokens=None", dict(max_new_tokens=None)),
        (ValueError, "seed=-1 must be 0 or more", dict(seed=-1)),
        (TypeError, "seed='x'", dict(seed="x")),
        (TypeError, "prompt is of type NoneType; it must be a str or a list of str", dict(prompt=None)),
        (TypeError, r"prompt\[1\] is of type int", dict(prompt=["a", 3])),
        (ValueError, "stream=True takes one prompt .* not a list of 2", dict(prompt=["a", "b"], stream=True)),
        (ValueError, "surrogate", dict(prompt="\ud83d")),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_bad_input_is_named(model, tok, error, message, changes):
    with pytest.raises(error, match=message):
        generate(model, tok, **{"prompt": "Hi", **changes})


def test_a_tokenizer_of_another_size_is_refused(tok):
    model = GPT(PRESETS["debug"])
    for call in (generate, next_token_probabilities):
        with pytest.raises(ValueError, match="tokenizer's vocab_size=260 differs from the model's vocab_size=512"):
            call(model, tok, "Hi")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_logits_are_named(tok, value):
    model = random_model(tied_head=False)
    with torch.no_grad():
        model.head.weight[7] = value
    with pytest.raises(FloatingPointError, match=r"logits hold .*(nan|inf).* for prompt 0 after 3 tokens"):
        generate(model, tok, ["Hi", "Hello"], temperature=0)


# ---------------------------------------------------------------- from a terminal


def test_command_line_writes_the_text_that_generate_gives(model, tok, tmp_path):
    from tools import save_model

    save_model(model, tok, tmp_path / "small")
    settings = ["--max-new-tokens", "20", "--temperature", "0.9", "--top-k", "5", "--seed", "3"]
    command = [sys.executable, "inference.py", str(tmp_path / "small"), "Hé", *settings]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert result.returncode == 0, result.stderr
    expected = generate(model, tok, "Hé", max_new_tokens=20, temperature=0.9, top_k=5, seed=3)
    assert result.stdout.splitlines() == (expected + "\n").splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_model", "Hi"], "no_such_model"),
        (["../x", "Hi"], "x"),
        (["{small}", "Hi", "--temperature", "-1"], "temperature=-1.0 must be"),
        (["{small}", "Hi", "--top-p", "0"], "top_p=0.0 must be"),
        (["{cosine}", "Hi", "--compiled", "yes"], "compiled=True can't be: norm_type='CosineNorm'"),
    ],
)
def test_command_line_errors_are_one_line(model, tok, tmp_path, monkeypatch, arguments, message):
    from tools import save_model

    save_model(model, tok, tmp_path / "small")
    save_model(random_model(norm_type="CosineNorm"), tok, tmp_path / "cosine")
    folders = {name: tmp_path / name for name in ("small", "cosine")}
    monkeypatch.setattr(sys, "argv", ["inference.py", *(a.format(**folders) for a in arguments)])
    with pytest.raises(SystemExit) as stop:
        inference.main()
    assert stop.value.code.startswith("error: ") and message in stop.value.code and "\n" not in stop.value.code


def test_command_line_says_in_one_line_that_a_prompt_is_too_long(model, tok, tmp_path, monkeypatch, capsys):
    from tools import save_model

    save_model(model, tok, tmp_path / "small")
    monkeypatch.setattr(sys, "argv", ["inference.py", str(tmp_path / "small"), "x" * 90, "--max-new-tokens", "1"])
    inference.main()
    assert capsys.readouterr().err.startswith("note: the prompt has 91 tokens, more than max_seq_len=64")


def test_command_line_help_names_every_setting(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["inference.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        inference.main()
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    settings = ("--max-new-tokens", "--temperature", "--top-k", "--top-p", "--min-p", "--seed", "--compiled")
    for word in ("NAME", "PROMPT", *settings):
        assert word in shown


# ---------------------------------------------------------------- pictures


def test_pictures_show_what_they_were_given(model, tok):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from lab.inference_plots import plot_next_tokens, plot_step_times, plot_survivors, step_times

    ax = plot_next_tokens([("\u2581cat", 0.5), ("$x$", 0.25)], "after 'The'")
    assert [bar.get_width() for bar in ax.patches] == [0.5, 0.25]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["\u2581cat", "$x$"]
    logits = next_token_logits(model, tok, "Hi")
    figure = plot_survivors(logits, tok, {"greedy": Choice(0), "k=3": Choice(1, top_k=3), "all": Choice(1)}, k=5)
    assert "greedy: 1 of 260 tokens stay" in figure.axes[0].get_title("left")
    assert sum(bar.get_height() > 0 for bar in figure.axes[1].patches[5:]) == 3
    times = {name: step_times(model, [1, 2], 12, use_cache=name == "cache") for name in ("cache", "none")}
    assert all(len(t) == 12 and min(t) > 0 for t in times.values())
    assert len(plot_step_times(times).lines) == 2
    plt.close("all")


def test_texts_side_by_side_are_escaped_in_html_and_whole_in_plain_text():
    from lab.inference_plots import SideBySide

    table = SideBySide({"a < b": "one\ntwo & three", "second": "x", "third": "y"}, columns=2)
    page = table._repr_html_()
    assert page.count("<tr>") == 4 and page.count("<td ") == 3
    assert "a &lt; b" in page and "one<br>two &amp; three" in page
    assert "--- second\nx" in repr(table)
