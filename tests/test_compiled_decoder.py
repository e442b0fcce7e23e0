"""The compiled decoder against the model itself: logits, choices, texts, what it refuses, what happens without it."""

import math
import random
import warnings
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lab.compile
from benchmarks.ablations import CONVOLVED
from config import NONLINEARITIES, PRESETS, SANDWICH, ModelConfig
from inference import Choice, generate, last_logits, new_tokens
from lab import compiled_decoder
from lab.compile import CompileError, built, compile_library
from lab.compiled_decoder import CompiledDecoder, why_not
from model import GPT, MLP
from tokenizer import get_tokenizer
from tools import trace

try:
    compiled_decoder.library()
except CompileError as error:
    pytest.skip(f"the decoder can't be compiled here: {error}", allow_module_level=True)

DEBUG = PRESETS["debug"].replace(vocab_size=260)
PROMPTS = [[1, 70, 71, 72], [1], [1, *range(40, 75)], [1, 9]]  # of different lengths
TEXTS = ["Hi", "Once upon a time there was", "", "A boat. " * 7]


@pytest.fixture(scope="module")
def tok():
    return get_tokenizer("byte")


def random_model(cfg: ModelConfig = DEBUG, seed: int = 0) -> GPT:
    """A model of which every parameter is random: as made, its blocks add nothing."""
    model, generator = GPT(cfg), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            centre, std = (1.0, 0.3) if parameter.ndim == 1 else (0.0, parameter.shape[-1] ** -0.5)
            parameter.normal_(centre, std, generator=generator)
    return model.eval()


def generators(count: int, seed: int = 0) -> list[random.Random]:
    return [random.Random(seed + i) for i in range(count)]


def both(model: GPT, choose: Choice, prompts=PROMPTS, **settings) -> tuple[list, list]:
    """The steps that the model itself gives, and those of its compiled copy."""
    plain = list(new_tokens(model, prompts, choose, generators(len(prompts)), **settings))
    decoder = CompiledDecoder(model, prompts)
    return plain, list(decoder.new_tokens(choose, generators(len(prompts)), **settings))


# ---------------------------------------------------------------- logits


def convolved(first: str, second: str | None = None) -> ModelConfig:
    """A small config with convolutions in front of attention and MLP, with these arguments."""
    return DEBUG.replace(recipe=f"Norm->ShortConv({first})->Attn->+->Norm->ShortConv({second or first})->MLP->+")


SHAPES = {
    **{
        f"preset {name}": cfg.replace(num_layers=2, vocab_size=260)
        for name, cfg in PRESETS.items()
        if not name.startswith("debug_")
    },
    **{f"mlp {name}": DEBUG.replace(mlp_nonlinearity=name, mlp_gated=False) for name in NONLINEARITIES},
    "gated gelu, biases": DEBUG.replace(mlp_nonlinearity="gelu", mlp_bias=True, norm_bias=True),
    "post_norm": DEBUG.replace(post_norm=True, qk_norm=True),
    "recipe sandwich": DEBUG.replace(recipe=SANDWICH),
    "recipe llama": PRESETS["debug_llama"],
    "recipe with windows": PRESETS["debug_local_global"],
    "a window over panels": DEBUG.replace(recipe="Norm->Attn(window=5)->+->Norm->MLP->+", max_seq_len=200),
    "one group": DEBUG.replace(num_kv_heads=1, qk_norm=True),
    "a group for each head": DEBUG.replace(num_kv_heads=4),
    "six heads in a group": DEBUG.replace(num_q_heads=6, num_kv_heads=1, head_dim=10),
    "odd sizes": DEBUG.replace(dim=37, num_q_heads=3, num_kv_heads=3, head_dim=22, mlp_hidden=29, vocab_size=131),
    "wide heads": DEBUG.replace(head_dim=80, num_kv_heads=1),
    "free head, scaled": DEBUG.replace(tied_head=False, scale_first_residual=True),
    "narrow embedding": DEBUG.replace(embed_dim=12),
    "narrow embedding, free head": DEBUG.replace(embed_dim=12, tied_head=False),
    "partial rope": DEBUG.replace(rope_dim=4, rope_theta=500.0),
    "interleaved": DEBUG.replace(positions="rope_interleaved"),
    "the winner's parts": DEBUG.replace(
        recipe=CONVOLVED,
        embed_dim=12,
        scale_first_residual=True,
        mlp_gated=False,
        mlp_nonlinearity="relu2",
        logit_cap=4.0,
    ),
    "convolutions, biases": convolved("width=3,bias=true"),
    "convolutions of one token": convolved("width=1,residual=true"),
    "convolutions wider than a text": convolved("width=70,residual=true", "width=cyc(2,70)"),
    "convolutions of an odd width": convolved("width=5").replace(dim=37, head_dim=8),
    "convolutions, sandwich": DEBUG.replace(recipe="Norm->ShortConv->Attn->Norm->+->Norm->MLP->+", norm_bias=True),
    "value residual": DEBUG.replace(recipe="Norm->ValueResidualAttn(window=9)->+->Norm->MLP->+", num_layers=3),
    "value residual block": DEBUG.replace(attn_block="ValueResidualAttn"),
    "attention with biases": DEBUG.replace(recipe="Norm->Attn(bias=true,window=cyc(7,none))->+->Norm->MLP->+"),
    "as GPT-2": DEBUG.replace(
        recipe="Norm->Attn(bias=true)->+->Norm->MLP->+",
        norm_type="LayerNorm",
        norm_bias=True,
        positions="learned",
        mlp_gated=False,
        mlp_nonlinearity="gelu_tanh",
        mlp_bias=True,
        dim=39,
        head_dim=8,
    ),
    "norms that learn nothing": DEBUG.replace(norm_affine=False, qk_norm=True, post_norm=True),
    "capped": DEBUG.replace(logit_cap=1.5, tied_head=False),
    "capped far away": DEBUG.replace(logit_cap=1e5, embed_dim=12),
    "alibi": DEBUG.replace(positions="alibi", num_q_heads=6, num_kv_heads=2, head_dim=5, max_seq_len=200),
    "alibi in a window": DEBUG.replace(positions="alibi", recipe="Norm->Attn(window=9)->+->Norm->MLP->+"),
    "longer context": DEBUG.replace(rope_factor=4.0, rope_original_len=32),
    **{f"positions {name}": DEBUG.replace(positions=name) for name in ("none", "learned", "sinusoidal")},
}


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_the_models(name):
    cfg = SHAPES[name]
    model = random_model(cfg)
    prompts = [[i % cfg.vocab_size for i in ids] for ids in [*PROMPTS, list(range(cfg.max_seq_len))]]
    with torch.no_grad():
        expected = last_logits(model, prompts)[0]
    decoder = CompiledDecoder(model, prompts)
    found = decoder.logits()
    assert torch.equal(decoder.logits(), found)  # asked again, with nothing new to read
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


GREEDY = ["preset 0.5m_5foot11_and_skinnyfat", "preset 0.5m", "preset 7m", "recipe with windows", "odd sizes"]
GREEDY += ["the winner's parts", "convolutions, biases", "convolutions wider than a text", "value residual", "alibi"]


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_steps_are_the_likeliest_tokens_of_one_full_forward(name):
    model = random_model(SHAPES[name].replace(max_seq_len=100))
    decoder = CompiledDecoder(model, [[1]])
    steps = list(decoder.new_tokens(Choice(0), generators(1), max_new_tokens=100, at_once=1))
    ids = [1, *(new_id for (new_id,) in steps)]
    with torch.no_grad():
        likeliest = model(torch.tensor([ids[:100]]))[0].argmax(-1)
    assert ids[1:] == likeliest.tolist()


def test_logits_of_a_prompt_that_is_too_long_are_those_of_its_last_half_window():
    model, ids = random_model(), [*range(4, 104)]
    with torch.no_grad():
        expected = model(torch.tensor([ids[-32:]]))[0, -1]
    assert torch.allclose(CompiledDecoder(model, [ids]).logits()[0], expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- choosing a token


@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([1, 2, 7, 64, 65, 300, 2051]),
    spread=st.sampled_from([0.01, 1.0, 5.0, 40.0]),
    temperature=st.sampled_from([0.0, 1e-3, 0.3, 0.8, 1.0, 2.0, 50.0]),
    top_k=st.sampled_from([None, 1, 2, 50, 5000]),
    top_p=st.sampled_from([None, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.05, 0.5, 1.0]),
)
def test_it_picks_what_choice_picks(seed, size, spread, temperature, top_k, top_p, min_p):
    logits = spread * torch.randn(3, size, generator=torch.Generator().manual_seed(seed))
    draws = [random.Random(seed + i).random() for i in range(3)]
    choose = Choice(temperature, top_k, top_p, min_p)
    decoder = tiny_decoder(size)
    assert [decoder.pick(row, choose, draw) for row, draw in zip(logits, draws)] == choose.pick(logits, draws)


@cache
def tiny_decoder(vocab_size: int) -> CompiledDecoder:
    cfg = ModelConfig(dim=4, num_layers=1, vocab_size=vocab_size, num_q_heads=1, num_kv_heads=1, max_seq_len=8)
    return CompiledDecoder(GPT(cfg), [[0]])


@given(seed=st.integers(0, 10_000), top_k=st.sampled_from([None, 3, 20]), temperature=st.sampled_from([0.0, 0.8, 3.0]))
def test_it_picks_what_choice_picks_among_equal_logits(seed, top_k, temperature):
    logits = torch.randint(-3, 3, (1, 70), generator=torch.Generator().manual_seed(seed)).float()
    draw = random.Random(seed).random()
    choose = Choice(temperature, top_k, min_p=0.01)
    assert tiny_decoder(70).pick(logits[0], choose, draw) == choose.pick(logits, [draw])[0]


@pytest.mark.parametrize("temperature", [1e-320, 1e-300, 1e300])
def test_it_picks_what_choice_picks_at_temperatures_out_of_reason(temperature):
    logits, choose = torch.randn(1, 70), Choice(temperature)
    decoder = tiny_decoder(70)
    for draw in (1e-9, 0.31, 0.71, 1 - 2**-53):
        assert decoder.pick(logits[0], choose, draw) == choose.pick(logits, [draw])[0]


def test_first_and_last_token_are_under_the_ends_of_the_line():
    decoder, logits = tiny_decoder(70), torch.randn(70)
    assert decoder.pick(logits, Choice(1.0), 0.0) == 0
    assert decoder.pick(logits, Choice(1.0), 1 - 2**-53) == 69
    alone = torch.full((70,), -50.0).index_fill(0, torch.tensor([33]), 50.0)
    assert {decoder.pick(alone, Choice(1.0, top_p=0.9), draw) for draw in (0.0, 0.5, 1 - 2**-53)} == {33}


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    "choose", [Choice(0), Choice(0.8), Choice(1.2, top_k=20), Choice(1.0, top_p=0.9), Choice(1.0, min_p=0.1)], ids=str
)
@pytest.mark.parametrize("name", ["preset debug", "the winner's parts", "convolutions, biases", "value residual"])
def test_the_same_seed_gives_the_same_ids_past_full_windows(name, choose):
    """64 tokens fit: windows of texts of different lengths are full, and refilled, at different steps."""
    plain, compiled = both(random_model(SHAPES[name].replace(vocab_size=260)), choose, max_new_tokens=200)
    assert compiled == plain and len(plain) == 200


def test_a_row_that_ends_gives_none_and_leaves_the_others_alone():
    model = random_model()
    with torch.no_grad():
        model.readout.weight[2] += 0.5 * model.readout.weight[:60].std(0)  # so that it is picked now and then
    lengths = set()
    for seed in range(6):
        prompts = [[*ids, 4 + seed] for ids in PROMPTS]
        plain, compiled = both(model, Choice(1.5), prompts, max_new_tokens=300, stop_id=2)
        assert compiled == plain
        lengths |= {sum(step[i] is not None for step in plain) for i in range(len(prompts))}
    assert len(lengths) > 10 and min(lengths) < 150  # some did end, at different steps


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_smallest_windows(limit):
    plain, compiled = both(random_model(DEBUG.replace(max_seq_len=limit)), Choice(1.0), max_new_tokens=20)
    assert compiled == plain


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_texts(threads):
    model = random_model()
    alone = both(model, Choice(1.0), max_new_tokens=90, stop_id=2)[1]
    torch.set_num_threads(threads)
    assert both(model, Choice(1.0), max_new_tokens=90, stop_id=2)[1] == alone


@pytest.mark.parametrize("at_once", [1, 5, 1000])
def test_how_many_steps_are_made_at_once_does_not_matter(at_once):
    model, settings = random_model(), dict(max_new_tokens=90, stop_id=2)
    steps = CompiledDecoder(model, PROMPTS).new_tokens(Choice(1.0), generators(4), **settings, at_once=at_once)
    assert list(steps) == list(new_tokens(model, PROMPTS, Choice(1.0), generators(4), **settings))


@pytest.mark.parametrize("settings", [dict(temperature=0), dict(seed=3), dict(seed=4, top_p=0.9, top_k=30)], ids=str)
def test_generate_gives_the_same_text(tok, settings):
    model = random_model()
    plain, compiled, auto = (
        generate(model, tok, TEXTS, max_new_tokens=100, compiled=way, **settings) for way in (False, True, "auto")
    )
    assert compiled == plain == auto
    stream = generate(model, tok, TEXTS[0], max_new_tokens=100, stream=True, compiled=True, **settings)
    assert "".join(stream) == plain[0]
    assert generate(model, tok, [], compiled=True) == []


def test_a_stream_makes_one_token_at_a_time(tok, monkeypatch):
    counts, run = [], compiled_decoder._Group.run
    monkeypatch.setattr(
        compiled_decoder._Group, "run", lambda self, steps, *rest: counts.append(steps) or run(self, steps, *rest)
    )
    stream = generate(random_model(), tok, "Hi", stream=True, compiled=True, seed=0)
    assert next(stream) == "Hi" and not counts
    next(stream)
    assert 1 <= len(counts) < 10 and set(counts) == {1}


def test_it_reads_the_weights_afresh_for_each_text(tok):
    model = random_model()
    first = generate(model, tok, "Hi", seed=1, compiled=True)
    model.load_state_dict(random_model(seed=1).state_dict())
    second = generate(model, tok, "Hi", seed=1, compiled=True)
    assert first != second == generate(model, tok, "Hi", seed=1, compiled=False)
    model.layers[1].mlp.Wdown.weight.data.mul_(-1)  # what no version counter sees
    assert generate(model, tok, "Hi", seed=1, compiled=True) == generate(model, tok, "Hi", seed=1, compiled=False)


def test_dropout_and_the_models_mode(tok):
    model = random_model(DEBUG.replace(dropout_rate=0.5))
    quiet = generate(model, tok, "Hi", seed=1, compiled=False)
    model.train()
    assert generate(model, tok, "Hi", seed=1, compiled=True) == quiet
    assert model.training
    stream = generate(model, tok, "Hi", stream=True, compiled=True)
    next(stream), next(stream)
    assert not model.training
    stream.close()
    assert model.training


# ---------------------------------------------------------------- what it refuses


def hooked() -> GPT:
    model = random_model()
    model.layers[0].mlp.register_forward_hook(lambda *_: None)
    return model


def logged() -> GPT:
    model = random_model()
    model.layers[0].attn.enable_logging()
    return model


class OwnMLP(MLP):
    pass


def with_own_block() -> GPT:
    model = random_model()
    model.layers[0].mlp = OwnMLP(DEBUG)
    return model


REFUSED = {
    "torch.float64": lambda: random_model().double(),
    "torch.bfloat16": lambda: random_model().bfloat16(),
    "norm_type='CosineNorm'": lambda: random_model(DEBUG.replace(norm_type="CosineNorm")),
    "recipe='Norm->\\[Attn|MLP]": lambda: random_model(DEBUG.replace(recipe="Norm->[Attn|MLP]->+")),
    "recipe='Norm->ShortConv->\\+": lambda: random_model(DEBUG.replace(recipe="Norm->ShortConv->+->Norm->MLP->+")),
    "recipe=.*MLP#ffn": lambda: random_model(DEBUG.replace(recipe="Norm->Attn->+->Norm->MLP#ffn->+")),
    "recipe=.*scale": lambda: random_model(DEBUG.replace(recipe="Norm->Attn->+(scale=0.5)->Norm->MLP->+")),
    "layers.0.attn is a SoftCapAttn": lambda: random_model(DEBUG.replace(attn_block="SoftCapAttn")),
    "layers.0.mlp has a hook": hooked,
    "layers.0.attn has .* logging": logged,
    "layers.0.mlp is a OwnMLP": with_own_block,
    "a Sequential, not a GPT": lambda: torch.nn.Sequential(random_model()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_it_does_not_know_is_named(message):
    model = REFUSED[message]()
    with pytest.raises(ValueError, match=f"can't be used: .*{message}"):
        CompiledDecoder(model, [[1]])


@pytest.mark.parametrize("message", ["layers.0.mlp has a hook", "recipe=.*MLP#ffn", "norm_type='CosineNorm'"])
def test_the_model_itself_writes_what_the_copy_does_not_know(tok, message):
    model = REFUSED[message]()
    assert generate(model, tok, "Hi", seed=0) == generate(model, tok, "Hi", seed=0, compiled=False)
    with pytest.raises(ValueError, match=f"compiled=True can't be: .*{message}"):
        generate(model, tok, "Hi", compiled=True)


def test_while_something_watches_the_model_itself_runs(tok):
    model = random_model()
    assert why_not(model) == ""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert why_not(model) == "autocast is on"
    with trace(model) as record:
        generate(model, tok, "Hi", max_new_tokens=2)
    assert "MLP" in str(record)


def test_wrong_settings_are_named(tok):
    with pytest.raises(ValueError, match="compiled='yes' must be True, False or 'auto'"):
        generate(random_model(), tok, "Hi", compiled="yes")
    with pytest.raises(ValueError, match="compiled=True can't be: use_cache=False"):
        generate(random_model(), tok, "Hi", compiled=True, use_cache=False)
    for ids in ([1, 260], [-1]):
        with pytest.raises(ValueError, match="token id"):
            CompiledDecoder(random_model(), [[1], ids])


def test_a_block_that_was_changed_is_noticed(tok, monkeypatch):
    model, forward = random_model(), MLP.forward
    monkeypatch.setattr(MLP, "forward", lambda self, x, ctx=None: 1.1 * forward(self, x, ctx))
    with pytest.warns(UserWarning, match="differ from the model's by .*was a block changed"):
        text = generate(model, tok, "Hi", seed=0)
    assert text == generate(model, tok, "Hi", seed=0, use_cache=False)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"compiled=True can't be: .*differ"):
        generate(model, tok, "Hi", compiled=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_damaged_weights_are_named(tok, value):
    model = random_model(DEBUG.replace(tied_head=False))
    with torch.no_grad():
        model.head.weight[7] = value
    for settings in (dict(), dict(stream=True)):
        with pytest.raises(FloatingPointError, match=r"logits hold .*(nan|inf).* for prompt 0 after 3 tokens"):
            list(generate(model, tok, "Hi", compiled=True, **settings))


def test_logits_that_become_infinite_on_the_way_are_named():
    model = random_model()
    with torch.no_grad():
        model.embed.weight[9] = math.nan  # and with it the head's logit, from the start
        model.readout.weight = torch.nn.Parameter(torch.randn(260, 32))
    decoder = CompiledDecoder(model, [[1], [1, 9], [1]])
    with pytest.raises(FloatingPointError, match="logits hold nan for prompt 1 after 2 tokens"):
        list(decoder.new_tokens(Choice(0), generators(3), max_new_tokens=9))


# ---------------------------------------------------------------- compiling


@pytest.fixture
def nothing_compiled(tmp_path, monkeypatch):
    """A machine on which nothing has been compiled yet, with an empty search path."""
    monkeypatch.setenv("SANDBOX_CACHE", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    compiled_decoder._library.cache_clear()
    yield monkeypatch
    compiled_decoder._library.cache_clear()


def test_without_a_compiler_the_model_itself_writes(tok, nothing_compiled):
    nothing_compiled.setenv("PATH", "")
    model = random_model()
    with pytest.warns(UserWarning, match=r"no compiler was found \(c\+\+, g\+\+, clang\+\+; .*the model itself writes"):
        text = generate(model, tok, "Hi", seed=0)
    assert text == generate(model, tok, "Hi", seed=0, compiled=False)
    with pytest.raises(ValueError, match="compiled=True can't be: no compiler was found"):
        generate(model, tok, "Hi", compiled=True)


def test_a_compiler_that_fails_is_named(nothing_compiled):
    nothing_compiled.setenv("CXX", "no-such-compiler -x")
    with pytest.raises(CompileError, match="no-such-compiler can't be run"):
        compiled_decoder.library()


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path, nothing_compiled):
    (tmp_path / "file").touch()
    nothing_compiled.setenv("SANDBOX_CACHE", str(tmp_path / "file"))
    with pytest.raises(CompileError, match=r"compiled_decoder.cpp can't be compiled or loaded: .*Not a directory"):
        compiled_decoder.library()


def test_a_library_is_made_once_and_found_again(tmp_path, nothing_compiled):
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }")
    assert compile_library(source).answer() == 42
    first = built(source)
    stamp = first.stat().st_mtime_ns
    assert built(source) == first and first.stat().st_mtime_ns == stamp
    assert built(source, (*lab.compile.FLAGS, "-DOTHER")) != first
    nothing_compiled.setattr(lab.compile, "_processor", lambda: "another one")
    assert built(source) != first
    source.write_text("int answer(void) { return 43; }")
    assert compile_library(source).answer() == 43
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_error_in_the_source_is_told_in_one_line(tmp_path, nothing_compiled):
    source = tmp_path / "broken.c"
    source.write_text("int answer(void) { return x; }")
    with pytest.raises(CompileError, match=r"failed with status 1: .*broken.c:1:.*error: .*x.* undeclared"):
        compile_library(source)
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.so"))


def test_no_warning_where_all_is_well(tok):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(random_model(), tok, "Hi", max_new_tokens=3)
