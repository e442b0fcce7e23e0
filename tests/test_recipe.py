"""The block language: reading, writing, running. What a recipe computes is compared with sums done by hand."""

import inspect
import random
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import blocks  # noqa: F401  registers the catalogue
from blocks.recipe_layer import RecipeLayer
from config import PRE_NORM, SANDWICH, ModelConfig
from model import GPT, LAYERS, MLP, MQA, ResidualLayer, layer
from recipe import (
    Add,
    Branches,
    ByDepth,
    Group,
    Lane,
    Layer,
    RecipeError,
    Set,
    Step,
    Tap,
    Unit,
    at_depth,
    format,
    parse,
)
from tokenizer import get_tokenizer
from tools import LoggingModule, load_model, save_model

SMALL = ModelConfig(dim=16, num_layers=2, vocab_size=20, max_seq_len=16, num_q_heads=4, num_kv_heads=2, mlp_hidden=24)

# ---------------------------------------------------------------- reading and writing

EXAMPLES = [
    PRE_NORM,
    SANDWICH,
    "Attn->+->Norm->=->MLP->+->Norm",
    "Norm->[Attn|MLP]->+",
    "Norm->Attn->+->Norm->MLP->+||Norm->MoE->+",
    "{Norm->RGLRU->+->Norm->MLP->+}*2->Norm->Attn(window=128)->+->Norm->MLP->+",
    "Norm->Attn->+->Norm->MLP#ffn->+",
    "{Norm->Attn->+->Norm->MLP->+}^2",
    "Norm->Attn(window=cyc(64,64,none))->+(drop=lin(0,0.1))",
    'Patch(size=4){Norm->Attn->+}#p*2@a->[Attn|MLP->+](join="cat")#b^3->+(@a,scale=0.5)',
    "X(@a,v=@b)@c@d",
    'X(1,-2,3.5,"a\\"|b",true,false,none,[1,[2]],w=[])',
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_canonical_text_of_each_rule_s_examples_is_itself(text):
    assert format(parse(text)) == text


def test_spaces_and_ways_of_writing_numbers_do_not_matter():
    text = " Norm -> Attn ( window = 064 , scale=.50,x=1E2)\n-> + ->MLP * 1"
    assert format(parse(text)) == "Norm->Attn(window=64,scale=0.5,x=100.0)->+->MLP"


def test_a_list_of_strings_means_lanes():
    assert parse(["Norm->Attn->+", "Norm->MLP->+"]) == parse("Norm->Attn->+||Norm->MLP->+")
    assert SMALL.replace(recipe=["Attn->+", "MLP->+"]).recipe == "Attn->+||MLP->+"
    for wrong in ([], ["Norm", 3], 3, None):
        with pytest.raises(ValueError, match="must be a string or a list of strings"):
            parse(wrong)


def test_the_tree_of_one_recipe():
    tree = parse('Norm->{Attn(64,v=@a)^2@b}#g->[A|=](join="mean")*3->W{X}->+(@b,drop=lin(0,1))')
    attn = Step(Unit("Attn", ((None, 64), ("v", Tap("a")))), 2, True, ("b",))
    branches = Branches((Lane((Step(Unit("A")),)), Lane((Step(Set()),))), (("join", "mean"),))
    inner = Layer((Lane((Step(Unit("X")),)),))
    assert tree == Layer((Lane((
        Step(Unit("Norm")),
        Step(Group(Layer((Lane((attn,)),)), "g")),
        Step(branches, 3),
        Step(Unit("W", inner=inner)),
        Step(Add(((None, Tap("b")), ("drop", ByDepth("lin", (0, 1)))))),
    )),))  # fmt: skip
    assert [unit.name for unit in tree.units()] == ["Norm", "Attn", "A", "W", "X"]


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,4}", fullmatch=True)
numbers = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
plain = numbers | st.text(max_size=5) | st.booleans() | st.none()
lin = st.tuples(numbers, numbers).map(lambda pair: ByDepth("lin", pair))
values = st.recursive(
    plain | lin,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, min_size=1, max_size=3).map(lambda v: ByDepth("cyc", tuple(v)))
    ),
    max_leaves=4,
)
tags = st.none() | names


@st.composite
def arguments(draw):
    some = values | names.map(Tap)
    positional = [(None, value) for value in draw(st.lists(some, max_size=2))]
    return tuple(positional + list(draw(st.dictionaries(names, some, max_size=2)).items()))


def layers_of(steps, max_lanes=2):
    lanes = st.lists(steps, min_size=1, max_size=3).map(lambda found: Lane(tuple(found)))
    return st.lists(lanes, min_size=1, max_size=max_lanes).map(lambda found: Layer(tuple(found)))


def steps_with(inner):
    """Steps whose groups, branches and wrapped recipes are made of the layers of `inner`."""
    bodies = (
        st.builds(Unit, names, arguments(), inner, tags)
        | st.builds(Group, inner, tags)
        | st.builds(Branches, inner.map(lambda found: found.lanes), arguments(), tags)
    )
    return st.builds(Step, bodies, st.integers(1, 12), st.booleans(), st.lists(names, max_size=2).map(tuple))


adds = st.builds(Step, st.builds(Add, arguments()) | st.just(Set()), taps=st.lists(names, max_size=2).map(tuple))
units = st.builds(Step, st.builds(Unit, names, arguments(), st.none(), tags), st.integers(1, 12), st.booleans())
trees = st.recursive(layers_of(adds | units), lambda inner: layers_of(adds | steps_with(inner)), max_leaves=3)


@given(trees)
def test_reading_what_was_written_gives_the_same_tree(tree):
    text = format(tree)
    again = parse(text)
    assert again == tree and format(again) == text


WRONG = [
    ("", 1, "expected a block"),
    ("Norm->", 7, "the recipe ends"),
    ("->Norm", 1, "there is '->'"),
    ("Norm Attn", 6, "expected '->', '||' or the end, but there is 'Attn'"),
    ("Norm-Attn", 5, "there is '-'"),
    ("Norm$Attn", 5, "unexpected '$'"),
    ("Norm->Attn?", 11, "unexpected '?'"),
    ("Norm|Attn", 5, "expected '->', '||' or the end"),
    ("[Attn||MLP]", 6, "expected ']' or '|'"),
    ("[Attn|MLP", 10, "expected ']' or '|' in the branches, but the recipe ends"),
    ("{Attn->+", 9, "expected '}' to close the group"),
    ("Patch{Attn", 11, "to close Patch"),
    ("Attn->+}", 8, "there is '}'"),
    ("Attn*", 6, "how often"),
    ("Attn*0", 6, "a whole number from 1 to 1000"),
    ("Attn*1.5", 6, "a whole number from 1 to 1000"),
    ("Attn^-2", 6, "a whole number from 1 to 1000"),
    ("Attn*1001", 6, "a whole number from 1 to 1000"),
    ("+*2", 2, "expected '->'"),
    ("=^2", 2, "expected '->'"),
    ("Attn#", 6, "the name of a tag"),
    ("Attn@1", 6, "the name of a tap"),
    ("Attn()", 6, "expected a value"),
    ("Attn(1", 7, "expected ')' or ','"),
    ("Attn(window=)", 13, "expected a value"),
    ("Attn(window=1,2)", 15, "without a name stands behind"),
    ("Attn(a=1,a=2)", 10, "the argument 'a' is given twice"),
    ("Attn(mean)", 6, 'a text is written "mean"'),
    ("Attn(a=nome)", 8, "did you mean 'none'"),
    ("Attn(a=True)", 8, "did you mean 'true'"),
    ("Attn(a=cic(1))", 8, "did you mean 'cyc'"),
    ("Attn(a=cyc())", 8, "at least one value"),
    ("Attn(a=lin(1))", 8, "two numbers"),
    ("Attn(a=lin(none,1))", 8, "two numbers"),
    ("Attn(a=cyc(@b))", 12, "no tap"),
    ("Attn(a=[1)", 10, "expected ']' or ','"),
    ('Attn(a="b)', 8, "a string that does not end"),
    ('Attn(a="\\q")', 8, "a string that cannot be read"),
    ("Attn(a=1e999)", 8, "too large"),
    (f"Attn(a={'9' * 5000})", 8, "too large"),
    ("{" * 5000, 41, "brackets inside of one another"),
]


@pytest.mark.parametrize(("text", "column", "words"), WRONG, ids=[text[:20] for text, _, _ in WRONG])
def test_a_wrong_text_is_refused_at_its_column(text, column, words):
    with pytest.raises(RecipeError, match=re.escape(words)) as error:
        parse(text)
    assert error.value.column == column and f"at column {column} of" in str(error.value)


@given(st.text('NA->+|{}[]()*^#@,=1." ab', max_size=12))
def test_any_text_is_read_or_refused(text):
    try:
        canonical = format(parse(text))
    except RecipeError as error:
        assert 1 <= error.column <= len(text) + 1
    else:
        assert format(parse(canonical)) == canonical


def test_values_by_depth():
    assert [at_depth(ByDepth("cyc", (64, 64, None)), i, 5) for i in range(5)] == [64, 64, None, 64, 64]
    assert [at_depth(ByDepth("lin", (0, 0.1)), i, 3) for i in range(3)] == [0, 0.05, 0.1]
    assert at_depth(ByDepth("lin", (3, 7)), 0, 1) == 3
    assert at_depth(ByDepth("cyc", (1, ByDepth("lin", (0, 4)))), 1, 3) == 2
    assert at_depth((1, ByDepth("cyc", (5, 6))), 1, 2) == (1, 6)
    for wrong in (ByDepth("cyc", ()), ByDepth("lin", (1,)), ByDepth("lin", (True, 2))):
        with pytest.raises(ValueError, match=r"at least one value|two numbers"):
            at_depth(wrong, 0, 2)


# ---------------------------------------------------------------- running


class Shift(LoggingModule):
    causal, decodes = True, True

    def __init__(self, cfg, *, by: float = 1.0):
        super().__init__()
        self.by = by

    def forward(self, x, ctx=None):
        return x + self.by


class Scale(Shift):
    def forward(self, x, ctx=None):
        return x * self.by


class Minus(LoggingModule):
    def __init__(self, cfg):
        super().__init__()

    def forward(self, x, ctx=None, *, other):
        return x - other


class Twice(LoggingModule):
    """A wrapper: y = 2 inner(x)"""

    def __init__(self, cfg, *, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, ctx=None):
        return 2 * self.inner(x, ctx)


class Count(LoggingModule):
    """Adds how many tokens it has seen, its decode state."""

    causal, decodes = True, True

    def __init__(self, cfg):
        super().__init__()

    def forward(self, x, ctx=None):
        before = 0 if ctx.cache is None else ctx.cache.get(ctx.slot, 0)
        if ctx.cache is not None:
            ctx.cache[ctx.slot] = before + x.shape[1]
        return x + before + torch.arange(1, x.shape[1] + 1)[:, None]


@pytest.fixture
def toys(monkeypatch):
    """Blocks that can be reckoned with in one's head."""
    for cls in (Shift, Scale, Minus, Twice, Count):
        monkeypatch.setitem(LAYERS, cls.__name__, cls)


def built(recipe, cfg=SMALL, depth=(0, 1)):
    return randomised(RecipeLayer(cfg, parse(recipe), depth))


def randomised(module):
    for p in module.parameters():
        nn.init.normal_(p, std=0.3)
    return module.double().eval()


CLOSED_FORMS = [  # what becomes of x = 2
    ("Shift", 3),
    ("Shift(by=5)", 7),
    ("Shift(5)", 7),
    ("Scale(by=3)->+", 2 + 6),
    ("Scale(by=3)->+->Shift->+", 8 + 9),
    ("Scale(by=3)->=->Shift->+", 6 + 7),
    ("Scale(by=3)->+->=", 8),
    ("+", 4),
    ("=", 2),
    ("Scale(by=3)->+(scale=0.5)", 2 + 3),
    ("Shift@a->Scale(by=3)->+(@a)", 2 + 3),
    ("+@a->Shift->+(@a,scale=2)", 4 + 8),
    ("Shift@a@b->+(@a)->+(@b)", 2 + 3 + 3),
    ("Shift@a->Shift@a->+(@a)", 2 + 4),
    ("Shift@a->Scale(by=3)->Minus(other=@a)", 9 - 3),
    ("Shift@a->Scale(by=3)->Minus(@a)", 9 - 3),
    ("{Shift->+}*2", 5 + 6),
    ("{Shift->+}^2", 5 + 6),
    ("{Shift}->+", 2 + 3),
    ("Shift->{Scale(by=3)->+}->Shift", 2 + 9 + 1),
    ("Shift*3", 5),
    ("Scale(by=2)^3", 16),
    ("Shift->+||Scale(by=3)->+", 2 + 3 + 6),
    ("Shift||Scale(by=3)", 2 + 1 + 4),
    ("Shift->{Scale(by=3)||Scale(by=5)}->Shift", 2 + 4 + 8 + 1),
    ("Shift->{Scale(by=3)||Scale(by=5)}->+", 14 + 14),
    ("[Shift|Scale(by=3)]", 3 + 6),
    ('[Shift|Scale(by=3)](join="sum")->+', 2 + 9),
    ('[Shift|Scale(by=3)](join="mean")', 4.5),
    ('[Shift|Scale(by=3)]("mean")*2', (5.5 + 13.5) / 2),
    ("[Shift->+|Scale(by=3)]", 5 + 6),
    ("Scale(by=3)->[Shift|Shift]->+", 2 + 14),
    ("Twice{Shift->+}", 2 * 5),
    ("Twice{Twice{Shift}->+||Shift}->+", 2 + 2 * (2 + 6 + 1)),
    ("Shift@a->Twice{Scale(by=3)@a}->+(@a)", 2 + 3),
    ("Shift(by=cyc(1,5))", 3),
]


@pytest.mark.parametrize(("recipe", "expected"), CLOSED_FORMS, ids=[recipe for recipe, _ in CLOSED_FORMS])
def test_what_a_recipe_computes(toys, recipe, expected):
    x = torch.full((1, 3, 16), 2.0, dtype=torch.float64)
    torch.testing.assert_close(built(recipe)(x), torch.full_like(x, expected))


def test_values_by_depth_count_the_repetitions(toys):
    def at(recipe, index, count):
        return built(recipe, depth=(index, count))(torch.zeros(1, 1, 16, dtype=torch.float64))[0, 0, 0].item()

    assert [at("Shift(by=cyc(1,5))", i, 4) for i in range(4)] == [1, 5, 1, 5]
    assert [at("Shift(by=lin(0,6))", i, 4) for i in range(4)] == [0, 2, 4, 6]
    assert [at("Shift(by=lin(0,7))*2", i, 4) for i in range(4)] == [0 + 1, 2 + 3, 4 + 5, 6 + 7]
    assert [at("{Shift(by=lin(0,7))}*2", i, 4) for i in range(4)] == [0 + 1, 2 + 3, 4 + 5, 6 + 7]
    assert [at("{Shift(by=lin(0,6))}^2", i, 4) for i in range(4)] == [0, 4, 8, 12], "the same weights: the same layer"
    assert [at("Shift(by=1)->=->+(scale=cyc(2,3))", i, 2) for i in range(2)] == [1 + 2, 1 + 3]
    assert at("{Shift->=->+(scale=lin(1,4))}*2", 1, 2) == 5 + 4 * 5  # the scales 3 and 4 of 1, 2, 3, 4
    assert [at('Shift->[Shift|Shift](join=cyc("sum","mean"))', i, 2) for i in range(2)] == [4, 2]


def test_what_plus_learns():
    x, recipe = torch.randn(2, 3, 16, dtype=torch.float64), "MLP->+(layer_scale=0.1,gate=true,scale=2)"
    layer = RecipeLayer(SMALL, parse(recipe))
    assert torch.equal(layer.layer_scale, torch.full((16,), 0.1)) and layer.gate.item() == 0
    randomised(layer)
    torch.testing.assert_close(layer(x), x + 2 * layer.gate.tanh() * layer.layer_scale * layer.mlp(x))


def test_dropout_of_plus():
    x = torch.ones(4, 50, 16)
    for recipe, rate in (("=->+(drop=0.4)", 0.4), ("=->+", 0.2), ("=->+(drop=0)", 0.0)):
        layer = RecipeLayer(SMALL.replace(dropout_rate=0.2), parse(recipe))
        assert torch.equal(layer.eval()(x), 2 * x)
        added = layer.train()(x) - x
        assert abs((added == 0).double().mean().item() - rate) < 0.03
        torch.testing.assert_close(added.max().item(), 1 / (1 - rate))


def test_joins_that_learn(toys):
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    cat = built('[Shift|Scale(by=3)](join="cat")')
    torch.testing.assert_close(cat(x), torch.cat((x + 1, 3 * x), dim=-1) @ cat.join.weight.T)
    gate = built('[Shift|Scale(by=3)](join="gate")')
    weights = (x @ gate.join.weight.T).softmax(-1)
    torch.testing.assert_close(gate(x), weights[..., :1] * (x + 1) + weights[..., 1:] * 3 * x)
    twice = built('[Shift|Scale(by=3)](join="cat")*2')
    assert sum(p.numel() for p in twice.parameters()) == 2 * 32 * 16, "fresh copies have a matrix each"


def test_norms_take_their_arguments():
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    layer = built("Norm(eps=0.5)->LayerNorm(bias=true)->CosineNorm(affine=false)")
    y = F.rms_norm(x, (16,), layer.norm.weight, 0.5)
    y = F.layer_norm(y, (16,), layer.layernorm.weight, layer.layernorm.bias, 1e-5)
    torch.testing.assert_close(layer(x), F.normalize(y, dim=-1))
    assert type(built("Norm", SMALL.replace(norm_type="CosineNorm")).norm).__name__ == "CosineNorm"


def test_aliases_are_what_the_config_says(toys):
    layer = built("Attn->MLP", SMALL.replace(attn_block="Scale", mlp_block="Shift"))
    assert type(layer.attn) is Scale and type(layer.mlp) is Shift
    layer = built("Attn->MLP")
    assert type(layer.attn) is MQA and type(layer.mlp) is MLP


# ---------------------------------------------------------------- against ResidualLayer


@pytest.mark.parametrize(("recipe", "post_norm"), [(PRE_NORM, False), (SANDWICH, True)])
def test_the_named_recipes_are_the_residual_layer(recipe, post_norm):
    plain = randomised(ResidualLayer(SMALL.replace(post_norm=post_norm)))
    layer = built(recipe)
    names = ["norm", "attn", "norm_2", "mlp"]
    others = ["attn_norm", "attn", "mlp_norm", "mlp"]
    if post_norm:
        names = ["norm", "attn", "norm_2", "norm_3", "mlp", "norm_4"]
        others = ["attn_norm", "attn", "attn_post_norm", "mlp_norm", "mlp", "mlp_post_norm"]
    for name, other in zip(names, others, strict=True):
        getattr(layer, name).load_state_dict(getattr(plain, other).state_dict())
    x = torch.randn(2, 7, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    torch.testing.assert_close(layer(x), plain(x))
    ours = torch.autograd.grad((layer(x) * weight).sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad((plain(x) * weight).sum(), [x, *plain.parameters()])
    torch.testing.assert_close(ours[0], theirs[0])
    by_size = [sorted((g.square().sum() for g in found[1:]), key=float) for found in (ours, theirs)]
    torch.testing.assert_close(*map(torch.stack, by_size))


def test_post_norm_and_parallel_by_hand():
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    layer = built("Attn->+->Norm->=->MLP->+->Norm")
    y = layer.norm(x + layer.attn(x))
    torch.testing.assert_close(layer(x), layer.norm_2(y + layer.mlp(y)))
    layer = built("Norm->[Attn|MLP]->+")
    torch.testing.assert_close(layer(x), x + layer.attn(layer.norm(x)) + layer.mlp(layer.norm(x)))
    layer = built("Norm->Attn->+->Norm->MLP->+||Norm->MLP->+")
    y = x + layer.attn(layer.norm(x))
    y = y + layer.mlp(layer.norm_2(y))
    torch.testing.assert_close(layer(x), y + layer.mlp_2(layer.norm_3(x)))


# ---------------------------------------------------------------- sharing


def parameters(recipe, **changes):
    return sum(p.numel() for p in GPT(SMALL.replace(recipe=recipe, **changes)).layers.parameters())


def test_parameters_are_shared_where_the_recipe_says_so():
    mlp, norm, attn = 3 * 16 * 24, 16, 16 * 16 + 2 * 16 * 8 + 16 * 16
    assert parameters("MLP->+") == 2 * mlp
    assert parameters("MLP*3->+") == 6 * mlp
    assert parameters("MLP^3->+") == 2 * mlp
    assert parameters("MLP#a->+") == mlp
    assert parameters("MLP#a*3->+") == mlp
    assert parameters("MLP#a->+->MLP#b->+") == 2 * mlp
    assert parameters("{Norm->MLP->+}*2") == 4 * (mlp + norm)
    assert parameters("{Norm->MLP->+}^2") == 2 * (mlp + norm)
    assert parameters("{Norm->MLP->+}#g") == mlp + norm
    assert parameters("{MLP*2->+}#g") == 2 * mlp, "copies within a shared group are fresh ones"
    assert parameters("{Norm->MLP->+(layer_scale=0.1,gate=true)}#g") == mlp + norm + 16 + 1
    assert parameters('[Attn|MLP](join="cat")#b') == attn + mlp + 32 * 16
    assert parameters("Norm->Attn->+->Norm->MLP#ffn->+", num_layers=5) == 5 * (2 * norm + attn) + mlp


def test_a_tag_is_for_one_kind_of_unit():
    for recipe in ("MLP#a->Attn#a", "Norm(eps=0.1)#a->Norm#a", "{MLP->+}#a->{MLP}#a", "{MLP}#a->MLP#a"):
        with pytest.raises(RecipeError, match="#a is shared with a part of another kind"):
            GPT(SMALL.replace(recipe=recipe))
    with pytest.raises(RecipeError, match="other arguments at column 1"):
        GPT(SMALL.replace(recipe="Norm(eps=cyc(0.1,0.2))#a"))


def test_shared_weights_keep_their_own_decode_state(toys):
    for recipe in ("Count^3", "Count#a*3", "{Count}^3", "{Count#a}*3", "[Count^3]", "Count#a->Count#a->Count#a"):
        model = GPT(SMALL.replace(recipe=recipe)).double()
        tokens = torch.randint(0, 20, (2, 6))
        ctx = model.context(tokens, decode=True)
        parts = [model.features(piece, ctx) for piece in tokens.split([2, 1, 3], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model.features(tokens))
        assert len(ctx.cache) == 6 and set(ctx.cache.values()) == {6}, recipe


def test_taps_go_from_layer_to_layer(toys):
    first, second = (built("Shift@a->+->Minus(other=@a)", depth=(i, 2)) for i in range(2))
    x = torch.full((1, 1, 16), 2.0, dtype=torch.float64)
    assert first(x)[0, 0, 0] == second(x)[0, 0, 0] == 2
    with pytest.raises(RecipeError, match=r"@a is used before a step kept it at column 1 .*known up to here: none"):
        GPT(SMALL.replace(recipe="+(@a)->Shift@a"))
    model = GPT(SMALL.replace(recipe="{Shift@a->+}->{Shift->+(@a)}"))
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    ctx = model.context(tokens)
    model(tokens, ctx)
    assert set(ctx.taps) == {"a"}


# ---------------------------------------------------------------- what a block starts with


def test_a_block_starts_at_zero_where_a_plain_sum_comes_next():
    def starts(recipe):
        mlps = [module for module in GPT(SMALL.replace(recipe=recipe)).modules() if type(module) is MLP]
        return [not mlp.Wdown.weight.any() for mlp in mlps[:2]]

    options = "scale=0.5,drop=0,layer_scale=1e-4"
    for recipe in ("MLP->+", f"MLP->+({options})", "{MLP}->+", "[MLP|MLP]->+", "MLP->+||MLP->+"):
        assert starts(recipe) == [True, True], recipe
    for recipe in ("MLP", "MLP->Norm->+", "MLP->+(gate=true)", "MLP^2->+", "{MLP}->Norm->+", "[MLP|MLP]->Norm->+",
                   '[MLP|MLP](join="cat")->+', "MLP@a->+(@a)", "MLP->=", "MLP||MLP"):  # fmt: skip
        assert starts(recipe) == [False, False], recipe
    assert starts("MLP*2->+") == [False, True]
    assert starts("MLP#a->+->MLP#a->Norm->+") == [False], "one place that needs a start decides"


@pytest.mark.parametrize(
    "recipe", ["MLP->+(gate=true)", "MLP^2->+", "Attn->MLP->+", "Attn->Norm->+", "Attn->=->MLP->+"]
)
def test_from_the_start_every_parameter_moves(recipe):
    model = GPT(SMALL.replace(recipe=recipe))
    optimizer, tokens = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-20), torch.randint(0, 20, (4, 8))
    before = {name: p.clone() for name, p in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten()).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


# ---------------------------------------------------------------- refused when built

UNBUILDABLE = [
    ("Norm->Atn->+", 7, "unknown block 'Atn' at column 7 of 'Norm->Atn->+'; did you mean 'Attn'?"),
    ("Twice{Norm->Atn}", 13, "unknown block 'Atn' at column 13 of 'Twice{Norm->Atn}'"),
    ("Norm->atn->+", 7, "did you mean 'Attn'?"),
    ("Norm->Qwxyz", 7, "registered with @layer"),
    ("MLP(hiden=3)", 1, "MLP has no argument 'hiden'"),
    ("Shift(bye=3)", 1, "did you mean 'by'?"),
    ("Shift(1,2)", 1, "Shift has no further argument"),
    ("Shift(1,by=2)", 1, "the argument 'by' is given twice"),
    ('Shift(by="a")', 1, "by='a' must be of type float"),
    ("Shift(by=true)", 1, "by=True must be of type float"),
    ("Norm(eps=none)", 1, "eps=None must be of type float"),
    ("Norm(affine=1)", 1, "affine=1 must be of type bool"),
    ("Norm->Norm(dim=3)", 7, "it has eps, affine, bias"),
    ("Shift@a->Norm(eps=@a)", 10, "no argument 'eps' that is a tap"),
    ("Shift@a->Shift(by=@a)", 10, "Shift has no argument 'by' that is a tap"),
    ("Shift->Minus(other=@b)", 8, "@b is used before"),
    ("Shift@a->Twice{Minus(other=@a)}", 16, "@a is used before"),
    ("Twice{Shift@a}->+(@a)", 17, "@a is used before"),
    ("Shift{Norm}", 1, "takes no inner recipe"),
    ("Norm->Twice", 7, "needs an inner recipe"),
    ("Norm{Attn}", 1, "takes no inner recipe"),
    ("Shift->+(0.5)", 8, "'+' takes a tap"),
    ("Shift->+(scal=0.5)", 8, "'+' takes a tap"),
    ("Shift@a->+(scale=@a)", 10, "scale=Tap(name='a') must be of type float"),
    ("Shift->+(gate=1)", 8, "gate=1 must be of type bool"),
    ("Shift->+(drop=1)", 8, "drop=1 must be in [0, 1)"),
    ("Shift->+(drop=lin(0.5,1))", 8, "drop=1"),
    ('Shift->+(layer_scale="a")', 8, "layer_scale='a' must be of type float"),
    ('[Shift|Shift](join="max")', 1, 'join="sum", "mean", "cat" or "gate"'),
    ("[Shift|Shift](join=1)", 1, 'join="sum"'),
    ('[Shift|Shift](jion="sum")', 1, 'join="sum"'),
]


@pytest.mark.parametrize(("recipe", "column", "words"), UNBUILDABLE, ids=[row[0] for row in UNBUILDABLE])
def test_what_cannot_be_built_is_refused_at_its_column(toys, recipe, column, words):
    cfg = SMALL.replace(recipe=recipe)  # the syntax is right
    with pytest.raises(RecipeError, match=re.escape(words)) as error:
        GPT(cfg)
    assert error.value.column == column and f"at column {column} of {cfg.recipe!r}" in str(error.value)


def test_what_a_block_says_of_its_arguments_comes_with_the_column(monkeypatch):
    @layer("Picky")
    class Picky(LoggingModule):
        def __init__(self, cfg, *, size: int = 3):
            super().__init__()
            if size % 2 == 0:
                raise ValueError(f"size={size} must be odd")
            self.part = nn.Linear(size, size)

    try:
        for text, words in (("Norm->Picky(size=4)", "size=4 must be odd at column 7"), ("Picky(-3)", "column 1")):
            with pytest.raises(RecipeError, match=words):
                GPT(SMALL.replace(recipe=text))
    finally:
        del LAYERS["Picky"]


# ---------------------------------------------------------------- config, files, compiling


def test_the_config_keeps_the_canonical_text():
    cfg = SMALL.replace(recipe=" Norm -> Attn ->+ ")
    assert cfg.recipe == "Norm->Attn->+" and ModelConfig.from_dict(cfg.to_dict()) == cfg
    with pytest.raises(ValueError, match=r"expected a block.* at column 7"):
        SMALL.replace(recipe="Norm->")
    with pytest.raises(ValueError, match=r"post_norm=True stands for the recipe.*but recipe="):
        SMALL.replace(recipe="Norm->Attn->+", post_norm=True)


WHOLE = [
    PRE_NORM,
    SANDWICH,
    "Attn->+->Norm->=->MLP->+->Norm",
    'Norm->[Attn|MLP](join="cat")->+->Norm->MLP#ffn->+(gate=true,layer_scale=0.1)',
    "{Norm->Attn@a->+}^2->Norm(eps=0.1)->MLP#ffn->+(@a,scale=lin(1,2))||Norm->MLP*2->+",
]


@pytest.mark.parametrize("recipe", WHOLE)
def test_saved_and_loaded_the_logits_are_the_same(tmp_path, recipe):
    tok = get_tokenizer("byte")
    model = GPT(SMALL.replace(recipe=recipe, vocab_size=tok.vocab_size))
    model = randomised(model).float()
    tokens = torch.randint(0, tok.vocab_size, (2, 9))
    again, _, cfg = load_model(save_model(model, tok, tmp_path / "m"))
    assert torch.equal(again(tokens), model(tokens)) and cfg == model.cfg


@pytest.mark.parametrize("recipe", WHOLE[-2:])
def test_recipes_compile_without_a_break(recipe):
    model, tokens = randomised(GPT(SMALL.replace(recipe=recipe))), torch.randint(0, 20, (2, 9))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), model(tokens))
    torch._dynamo.reset()


# ---------------------------------------------------------------- any recipe at all


class Grammar:
    """Random recipes over the registered blocks: most can be built, some have a slip in a name or a tap."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        found = {name: cls for name, cls in LAYERS.items() if cls.__module__.split(".")[0] in ("model", "blocks")}
        found = {name: cls for name, cls in found.items() if cls.causal and cls.decodes}
        wraps = {name for name, cls in found.items() if "inner" in inspect.signature(cls.__init__).parameters}
        self.wrappers = sorted(wraps)
        self.blocks = [*sorted(found.keys() - wraps), "Norm", "Norm", "Norm", "MLP", "Attn"]

    def some(self, chance, text, *others):
        return text if self.random.random() < chance else self.random.choice(others or ("",))

    def layer(self, depth=0):
        lanes = [self.lane(depth) for _ in range(1 + (self.random.random() < 0.15))]
        return "||".join(lanes)

    def lane(self, depth):
        return "->".join(self.step(depth) for _ in range(self.random.randint(1, 4 - depth)))

    def step(self, depth):
        kind = self.random.random()
        if kind < 0.3:
            return self.some(0.5, "+", "+(scale=0.5)", "+(gate=true)", "+(drop=0.1)", "+(layer_scale=0.3)", "+(@a)")
        if kind < 0.35:
            return "="
        tap = self.some(0.15, self.some(0.7, "@a", "@b"))
        return self.unit(depth) + self.some(0.2, self.some(0.5, "*2", "^2")) + tap

    def unit(self, depth):
        kind = self.random.random()
        if depth < 2 and kind < 0.1:
            return "{" + self.layer(depth + 1) + "}" + self.some(0.2, "#g")
        if depth < 2 and kind < 0.2:
            join = self.some(0.5, "", '(join="mean")', '(join="cat")', '(join="gate")', '(join="max")')
            return f"[{self.lane(depth + 1)}|{self.lane(depth + 1)}]{join}"
        if depth < 2 and kind < 0.3 and self.wrappers:
            return self.random.choice(self.wrappers) + "{" + self.layer(depth + 1) + "}"
        name = self.random.choice(self.blocks)
        slip = self.some(0.98, "", "x", "(wrong=1)", "(@a)", "{Norm}")
        return name + slip + self.some(0.15, self.some(0.5, "#s", f"#{name.lower()}"))


def check_recipe(recipe, folder, tok):
    """Builds and runs a recipe, or finds it refused; returns whether it was built."""
    try:
        cfg = ModelConfig(dim=16, num_layers=2, vocab_size=tok.vocab_size, max_seq_len=16, mlp_hidden=24, recipe=recipe)
        model = GPT(cfg)
    except RecipeError as error:
        assert re.search(rf"at column {error.column} of", str(error)) and 1 <= error.column <= len(recipe) + 1
        return False
    for p in model.parameters():
        nn.init.normal_(p, std=0.15)
    tokens = torch.randint(0, tok.vocab_size, (2, 7))
    memory = torch.randn(2, 3, 16, dtype=torch.float64)
    try:
        _check_running(model.double(), tokens, memory)
    except ValueError as error:  # what only shows when it runs: a block that needs every token, among patches of them
        assert "it can't stand in a wrapper that changes their number" in str(error)
        return False
    model.float().eval()
    again = load_model(save_model(model, tok, folder))[0]
    logits = [m(tokens, _context(m, tokens, memory.float())) for m in (model, again)]
    assert torch.equal(*logits)
    return True


def _context(model, tokens, memory, **options):
    ctx = model.context(tokens, **options)
    ctx.memory = memory
    return ctx


def _check_running(model, tokens, memory):
    out = model.train().features(tokens, _context(model, tokens, memory))
    out.sum().backward()
    assert out.shape == (2, 7, 16) and out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.eval()
    ctx = _context(model, tokens, memory, decode=True)
    with torch.no_grad():
        parts = [model.features(piece, ctx) for piece in tokens.split([3, 1, 2, 1], dim=1)]
        whole = model.features(tokens, _context(model, tokens, memory))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", range(10))
def test_random_recipes_run_or_are_refused(tmp_path, chunk):
    tok, grammar = get_tokenizer("byte"), Grammar(chunk)
    recipes = [grammar.layer() for _ in range(50)]
    built = [check_recipe(recipe, tmp_path / str(i), tok) for i, recipe in enumerate(recipes)]
    assert 20 <= sum(built) < 50, "most can be built, and some cannot"
