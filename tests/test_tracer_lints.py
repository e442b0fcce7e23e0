"""Lints: each one fires where it should, and none of them where nothing is wrong."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from mutants import seen
from mutants.inputs import CFG, STANDARD
from torch import nn

from config import ModelConfig
from lab.tracer.stats import first_nonfinite, measure
from model import GPT, LAYERS
from tools import LoggingModule, log_io, trace

SMALL = ModelConfig(dim=32, num_layers=2, num_q_heads=4, num_kv_heads=2, head_dim=6, mlp_hidden=80, vocab_size=97,
                    max_seq_len=24)  # fmt: skip
SQUARE = ModelConfig(dim=64, num_q_heads=4, num_kv_heads=2, head_dim=16, mlp_hidden=96, vocab_size=97)  # K = T = 16


def lints(module, *inputs, names=SMALL, **settings):
    with trace(module, names=names, **settings) as tr:
        module(*inputs)
    return tr.lints


def kinds(module, *inputs, **settings) -> list[str]:
    return [lint.kind for lint in lints(module, *inputs, **settings)]


def line_of(lint) -> str:
    with open(lint.file, encoding="utf-8") as file:
        return file.read().splitlines()[lint.line - 1].strip()


# ------------------------------------------------------------------------------------------------ nothing is wrong

VARIANTS = [
    {}, {"qk_norm": True}, {"post_norm": True, "dropout_rate": 0.1}, {"mlp_gated": False, "mlp_bias": True},
    {"norm_type": "LayerNorm", "norm_bias": True}, {"norm_type": "CosineNorm"}, {"num_kv_heads": 4},
    {"mlp_nonlinearity": "relu2"}, {"positions": "learned"}, {"positions": "sinusoidal", "tied_head": False},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_no_lint_in_the_models_own_blocks(changes):
    cfg = SMALL.replace(**changes)
    for name in ("MQA", "MLP", "ResidualLayer"):
        block = LAYERS[name](cfg)
        for training in (True, False):
            assert lints(block.train(training), torch.randn(3, 5, 32), names=cfg) == []
    assert lints(GPT(cfg), torch.randint(0, 97, (3, 5)), names=cfg) == []


def test_no_lint_where_sizes_coincide():
    for B, T in itertools.product((1, 2, 4), (1, 2, 4, 6, 16)):
        assert lints(GPT(SMALL), torch.randint(0, 97, (B, T))) == []
    assert lints(GPT(SQUARE), torch.randint(0, 97, (2, 16)), names=SQUARE) == []


def test_no_lint_in_chunks_segments_and_decoding():
    model = GPT(SMALL.replace(max_seq_len=300))
    assert lints(model, torch.randint(0, 97, (2, 300)), names=model.cfg) == []
    tokens = torch.randint(0, 97, (2, 6))
    assert lints(model, tokens, model.context(tokens, segments=torch.ones(2, 6, dtype=torch.int64))) == []
    ctx = model.context(tokens, decode=True)
    with trace(model) as tr, torch.no_grad():
        for part in (tokens[:, :4], tokens[:, 4:5], tokens[:, 5:]):
            model(part, ctx)
    assert tr.lints == []


@pytest.mark.parametrize("cls", seen.MODULES, ids=lambda cls: cls.__name__)
def test_no_lint_in_right_modules_of_all_styles(cls):
    for B, T in (STANDARD, (2, 6), (4, 4)):
        inputs = seen.MODULES[cls](CFG, B, T, torch.Generator())
        assert lints(cls(CFG), *inputs, names=CFG) == []


def test_lints_are_shown_one_a_line():
    found = lints(DeadDropout(), torch.randn(2, 4, 8))
    assert str(found) == repr(found) == "\n".join(str(lint) for lint in found)
    assert "<pre" in found._repr_html_()
    assert f"test_tracer_lints.py:{found[0].line}: unused: " in str(found)
    assert str(lints(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))) == "no lints"


# ---------------------------------------------------------------------------------------------------------- unused


class DeadDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.proj = nn.Dropout(0.1), nn.Linear(8, 8)

    def forward(self, x):
        self.drop(x)
        return self.proj(x)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_that_is_called_and_discarded(training):
    found = lints(DeadDropout().train(training), torch.randn(2, 4, 8))
    assert [lint.kind for lint in found] == ["unused"]
    assert line_of(found[0]) == "self.drop(x)"
    assert "`x = self.drop(x)`" in found[0].text


class Body(nn.Module):
    """A module whose forward is one of the functions below."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.drop, self.proj, self.drop_in_place = nn.Dropout(0.1), nn.Linear(8, 8), nn.Dropout(0.1, inplace=True)

    def forward(self, x):
        return self.body(self, x)


def never_read(self, x):
    h = self.drop(x)  # noqa: F841  # lint
    return self.proj(x)


def overwritten(self, x):
    h = self.drop(x)  # lint
    h = self.proj(x)
    return h


def overwritten_in_a_branch(self, x):
    if x.ndim == 3:
        y = self.drop(x)  # lint
        y = self.proj(x)
        return y
    return x


def contiguous_discarded(self, x):
    x = x.transpose(1, 2)
    x.contiguous()  # lint
    return self.proj(x.transpose(1, 2))


def product_discarded(self, x):
    x @ x.mT  # lint
    return self.proj(x)


def both_parts_unused(self, x):
    a, b = x.chunk(2, dim=-1)  # noqa: RUF059  # lint
    return self.proj(x)


@pytest.mark.parametrize("body", [never_read, overwritten, overwritten_in_a_branch, contiguous_discarded,
                                  product_discarded, both_parts_unused])  # fmt: skip
def test_results_that_are_never_used(body):
    found = [lint for lint in lints(Body(body), torch.randn(2, 4, 8)) if lint.kind == "unused"]
    assert len(found) == 1
    assert line_of(found[0]).endswith("# lint")


def in_place(self, x):
    h = self.proj(x)
    h.mul_(2)
    self.drop_in_place(h)
    F.relu(h, inplace=True)
    torch.add(x, 1, out=torch.empty_like(x))
    h += 1
    return h


def underscore_and_partly_used(self, x):
    _ = self.drop(x)
    _ignored = self.proj(x)
    a, b = x.chunk(2, dim=-1)  # noqa: RUF059
    return self.proj(torch.cat((a, a), -1))


def read_in_a_loop(self, x):
    last = self.proj(x)
    out = x
    for _ in range(3):
        out = out + last
        last = self.drop(out)
    return out


def read_in_one_branch(self, x):
    h = self.proj(x)
    y = self.drop(x)
    if h.shape[0] > 100:
        return y
    return h


def set_before_and_in_a_branch(self, x):
    y = self.proj(x)
    if x.shape[0] > 100:
        y = self.drop(x)
    return y


def captured(self, x):
    scale = self.proj(x)
    double = lambda v: v * scale  # noqa: E731
    return double(x)


def read_by_finally(self, x):
    y = self.proj(x)
    try:
        y = self.drop(x)
        z = x * 2
    finally:
        x = y
    return x + z


def attributes_and_items(self, x):
    parts = {}
    parts["a"] = self.proj(x)
    return self.drop(x)


def read_by_assertion_and_comprehension(self, x):
    h = self.proj(x)
    assert h.isfinite().all()
    y = self.drop(x)
    return torch.stack([y * i for i in range(2)]).sum(0)


def deleted(self, x):
    h = self.proj(x)
    del h
    return self.drop(x)


@pytest.mark.parametrize("body", [in_place, underscore_and_partly_used, read_in_a_loop, read_in_one_branch, captured,
                                  set_before_and_in_a_branch, read_by_finally, attributes_and_items,
                                  read_by_assertion_and_comprehension, deleted])  # fmt: skip
def test_results_that_are_used_are_left_alone(body):
    assert "unused" not in kinds(Body(body), torch.randn(2, 4, 8))


class Remembers(nn.Module):
    """Calls made for what they do, not for what they return."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(8))
        self.log, self.proj = [], nn.Linear(8, 8)

    def count(self, x):
        self.total = self.total + x.detach().sum((0, 1))
        return self.total

    def note(self, x):
        self.log.append(float(x.mean()))
        return x.mean()

    def forward(self, x):
        self.count(x)
        self.note(x)
        return self.proj(x)


def test_calls_with_an_effect_are_left_alone():
    assert lints(Remembers(), torch.randn(2, 4, 8)) == []


# ------------------------------------------------------------------------------------------------------------ flag


class Inner(LoggingModule):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)

    @log_io
    def forward(self, x, training=False):
        return F.dropout(self.proj(x), 0.1, training)


class Outer(LoggingModule):
    """`how` is the code of the inner call."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how = Inner(), how

    @log_io
    def forward(self, x, training=False):
        if self.how == "forgotten":
            return self.inner(x)
        if self.how == "explicit":
            return self.inner(x, training=False)
        if self.how == "unpacked":
            return self.inner(x, **dict(training=False))
        return self.inner(x, training) if self.how == "by place" else self.inner(x, training=training)


def test_flag_that_was_not_handed_on():
    module = Outer("forgotten")
    with trace(module) as tr:
        module(torch.randn(2, 4, 8), training=True)
    assert [lint.kind for lint in tr.lints] == ["flag"]
    assert line_of(tr.lints[0]) == "return self.inner(x)"
    assert "Inner.forward ran with training=False, its default, though Outer.forward had training=True" in str(tr.lints)


@pytest.mark.parametrize("how", ["explicit", "unpacked", "by place", "by name"])
def test_flag_that_was_handed_on(how):
    module = Outer(how)
    with trace(module) as tr:
        module(torch.randn(2, 4, 8), training=True)
    assert tr.lints == []


def test_equal_flags_are_left_alone():
    assert lints(Outer("forgotten"), torch.randn(2, 4, 8)) == []


def always_drops(self, x):
    return self.proj(F.dropout(x, 0.5))


def drops_on_purpose(self, x):
    return self.proj(F.dropout(x, 0.5, training=True)) + F.dropout(x, 0.0)


def test_functional_dropout_in_eval_mode():
    x = torch.randn(2, 4, 8)
    found = [lint for lint in lints(Body(always_drops).eval(), x) if lint.kind == "flag"]
    assert len(found) == 1
    assert "training=self.training" in found[0].text
    assert "flag" not in kinds(Body(always_drops).train(), x)
    assert "flag" not in kinds(Body(drops_on_purpose).eval(), x)


class Causal(LoggingModule):
    def __init__(self, hand_on):
        super().__init__()
        self.hand_on = hand_on

    @log_io
    def forward(self, x, causal=True):
        if self.hand_on:
            return F.scaled_dot_product_attention(x, x, x, is_causal=causal)
        return F.scaled_dot_product_attention(x, x, x)


def test_attention_that_looks_ahead():
    x = torch.randn(2, 5, 8)
    assert kinds(Causal(False), x) == ["flag"]
    assert kinds(Causal(True), x) == []


# ---------------------------------------------------------------------------------------------------- coincidence


class Attention(nn.Module):
    """One head; `score` says how queries meet keys."""

    def __init__(self, cfg, score):
        super().__init__()
        self.cfg, self.score = cfg, score
        self.Wq = nn.Linear(cfg.dim, cfg.head_dim, bias=False)
        self.Wk = nn.Linear(cfg.dim, cfg.head_dim, bias=False)

    def forward(self, x):
        q, k = self.Wq(x), self.Wk(x)  # (B, T, K)
        return self.score(q, k).softmax(-1) @ x


def forgotten_transpose(q, k):
    return q @ k


def forgotten_transpose_in_matmul(q, k):
    return torch.matmul(q, k)


def wrong_letters(q, k):
    return torch.einsum("btk,bks->bts", q, k)


def right_product(q, k):
    return q @ k.mT


def right_letters(q, k):
    return torch.einsum("btk,bsk->bts", q, k)


@pytest.mark.parametrize("score", [forgotten_transpose, forgotten_transpose_in_matmul, wrong_letters])
def test_forgotten_transpose_at_T_equal_to_K(score):
    found = lints(Attention(SQUARE, score), torch.randn(2, 16, 64), names=SQUARE)
    assert [lint.kind for lint in found] == ["coincidence"]
    assert line_of(found[0]).startswith("return")
    assert "works only because" in found[0].text
    assert "= 16 (fails with T=15: " in found[0].text
    assert {"T", "K"} <= set(found[0].text.replace("=", " ").split())


@pytest.mark.parametrize("score", [right_product, right_letters])
def test_right_product_at_T_equal_to_K(score):
    assert lints(Attention(SQUARE, score), torch.randn(2, 16, 64), names=SQUARE) == []


def test_without_probes_nothing_is_guessed():
    module = Attention(SQUARE, forgotten_transpose)
    assert lints(module, torch.randn(2, 16, 64), names=SQUARE, probe=False) == []


class Heads(nn.Module):
    """Works while there are as many heads as channels in one: fails in a model of other sizes alone."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.Wq = nn.Linear(cfg.dim, cfg.num_q_heads * cfg.head_dim)

    def forward(self, x):
        q = self.Wq(x).unflatten(-1, (self.cfg.num_q_heads, self.cfg.head_dim))  # (B, T, H, K)
        return q @ q


def test_coincidence_of_two_sizes_of_the_config():
    cfg = SMALL.replace(num_q_heads=6)
    found = lints(Heads(cfg), torch.randn(3, 5, 32), names=cfg)
    assert [lint.kind for lint in found] == ["coincidence"]
    assert "`q @ q` works only because K = H = 6" in found[0].text


class UncutMask(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.register_buffer("mask", torch.full((cfg.max_seq_len, cfg.max_seq_len), -math.inf).triu(1))

    def forward(self, x):
        return (x @ x.mT + self.mask).softmax(-1) @ x


def test_mask_that_is_not_cut_to_length():
    found = lints(UncutMask(SMALL), torch.randn(2, 24, 32))
    assert [lint.kind for lint in found] == ["coincidence"]
    assert "T = Tmax = 24" in found[0].text


class Checked(nn.Module):
    """Refuses other lengths itself, and mixes positions with a matrix of one length: both are meant."""

    def __init__(self, cfg):
        super().__init__()
        self.mix = nn.Linear(cfg.max_seq_len, cfg.max_seq_len)

    def forward(self, x):
        if x.shape[1] % 2:
            raise ValueError("an even length is needed")
        return self.mix(x.mT).mT


class MixesPositions(Checked):
    def forward(self, x):
        return self.mix(x.mT).mT


class Pooled(nn.Module):
    """Needs a length that is a multiple of 4."""

    def forward(self, x):
        T = x.shape[1]
        pooled = x.unflatten(1, (-1, 4)).mean(2) if T % 4 == 0 else x[:, : T // 4]
        return x + pooled.repeat_interleave(4, dim=1)


@pytest.mark.parametrize("cls", [Checked, MixesPositions])
def test_lengths_that_are_refused_on_purpose(cls):
    assert lints(cls(SMALL), torch.randn(2, 24, 32)) == []


def test_lengths_that_must_be_multiples():
    assert lints(Pooled(), torch.randn(2, 24, 32)) == []


# ------------------------------------------------------------------------------------------------------- broadcast


class Regression(nn.Module):
    """Predicts one number a row; `loss` compares it with targets (B,)."""

    def __init__(self, loss):
        super().__init__()
        self.head, self.loss, self.scale = nn.Linear(32, 1), loss, nn.Parameter(torch.ones(8))

    def forward(self, x, y):
        return self.loss(self, self.head(x), y)


def stretched_both_ways(self, predicted, y):
    return (predicted - y).square().mean()


def stretched_by_the_loss(self, predicted, y):
    return F.mse_loss(torch.tanh(predicted), y)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", [stretched_both_ways, stretched_by_the_loss])
def test_unintended_broadcast(loss):
    found = lints(Regression(loss), torch.randn(5, 32), torch.randn(5))
    assert [lint.kind for lint in found if lint.kind != "uncalled"] == ["broadcast"]
    assert "to (5,5)" in found[0].text


def squeezed(self, predicted, y):
    return (predicted.squeeze(-1) - y).square().mean()


def outer_product(self, predicted, y):
    return (y[:, None] - y).square().mean() + (y.unsqueeze(1) * y.view(1, -1)).mean() + predicted.mean()


def keepdim(self, predicted, y):
    return y.mean(0, keepdim=True) * predicted + predicted * self.scale


def positions(self, predicted, y):
    return (torch.arange(5)[:, None] <= torch.arange(7)).float() * 2 + predicted.sum()


@pytest.mark.parametrize("loss", [squeezed, outer_product, keepdim, positions])
def test_broadcasts_that_are_meant(loss):
    assert lints(Regression(loss), torch.randn(5, 32), torch.randn(5)) == []


# ---------------------------------------------------------------------------------------------- hidden and uncalled


class Hides(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.blocks = [nn.Linear(8, 8)]
        self.gains = {"a": nn.Parameter(torch.ones(8))}
        self.table = torch.arange(8)

    def forward(self, x):
        return self.blocks[0](self.proj(x)) * self.gains["a"] + self.table


def test_what_pytorch_can_not_see():
    found = {lint.text.split()[0]: lint for lint in lints(nn.Sequential(Hides()), torch.randn(2, 4, 8))}
    assert {lint.kind for lint in found.values()} == {"hidden"}
    assert set(found) == {"self.blocks", "self.gains", "self.table"}
    assert "nn.ModuleList" in found["self.blocks"].text
    assert "nn.ParameterDict" in found["self.gains"].text
    assert "register_buffer('table', …)" in found["self.table"].text
    assert line_of(found["self.table"]) == "self.table = torch.arange(8)"


class KeepsInOrder(nn.Module):
    """Plain attributes that hold nothing of their own: registered elsewhere, made during forward, in a config."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.order = [self.blocks[1], self.blocks[0]]
        self.first = self.blocks[0].weight
        self.cache, self.seen, self.run = None, {}, self.blocks[0].forward

    @functools.cached_property
    def table(self):
        return torch.ones(8)

    def forward(self, x):
        for block in self.order:
            x = block(x)
        self.cache = x.detach() * self.table
        self.seen["last"] = x.detach()
        return x


def test_what_pytorch_need_not_see():
    cfg = {"D": 8, "table": torch.ones(3)}
    assert lints(KeepsInOrder(cfg), torch.randn(2, 4, 8), names={"D": 8}) == []


class Table(nn.Module):
    """Holds a buffer that others read."""

    def __init__(self):
        super().__init__()
        self.register_buffer("values", torch.ones(8))

    def forward(self, index):
        return self.values[index]


class Forgets(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.forgotten, self.by_weight = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8)
        self.skip, self.parts = nn.Identity(), nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.attn, self.table = nn.MultiheadAttention(8, 2, batch_first=True), Table()

    def forward(self, x):
        x = F.linear(self.parts[0](x), self.by_weight.weight)
        return self.used(self.attn(x, x, x)[0]) * self.table.values


def test_submodules_that_are_never_called():
    found = lints(Forgets(), torch.randn(2, 4, 8))
    assert [lint.text.split()[0] for lint in found] == ["forgotten", "parts.1"]
    assert {lint.kind for lint in found} == {"uncalled"}


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Forgets() for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_equal_layers_are_reported_once():
    found = lints(Stack(), torch.randn(2, 4, 8))
    assert [lint.text.split()[0] for lint in found] == ["layers.0.forgotten", "layers.0.parts.1"]
    assert all(lint.text.endswith("(and 2 more like it)") for lint in found)


def test_a_part_of_the_model_says_nothing_of_the_rest():
    model = GPT(SMALL)
    with trace(model, names=SMALL) as tr:
        model.features(torch.randint(0, 97, (2, 5)))
    assert tr.lints == []
    with trace(model, names=SMALL) as tr:
        model.layers[0](torch.randn(2, 5, 32))
    assert tr.lints == []
    assert lints(Forgets(), torch.randn(2, 4, 8), only="attn") == []


# ------------------------------------------------------------------------------------------------------ statistics


def test_measure_of_known_values():
    stats = measure(torch.tensor([1.0, 0.0, 3.0, math.nan, math.inf, -math.inf, 0.0, 4.0]))
    assert (stats["nan"], stats["inf"], stats["-inf"], stats["zeros"]) == (1, 2, 1, 0.25)
    assert (stats["min"], stats["max"]) == (0, 4)
    assert stats["mean"] == pytest.approx(1.6)
    assert stats["std"] == pytest.approx(math.sqrt(2.64))


@pytest.mark.parametrize(("tensor", "mean"), [
    (torch.tensor([3 + 4j, 3 - 4j]), 5),
    (torch.tensor([True, False]), 0.5),
    (torch.arange(5), 2),
    (torch.tensor(7.0), 7),
    (torch.tensor([60000.0, 60000.0], dtype=torch.float16), 60000),
    (torch.tensor([3e38, 3e38], dtype=torch.bfloat16), 3e38),
    (torch.tensor([1.5e308, 1.5e308], dtype=torch.float64), 1.5e308),
    (torch.eye(2).to_sparse(), 1),
    (torch.ones(3).to(torch.float8_e4m3fn), 1),
], ids=lambda value: str(getattr(value, "dtype", "")))  # fmt: skip
def test_measure_is_safe_for_all_kinds(tensor, mean):
    stats = measure(tensor)
    assert stats["mean"] == pytest.approx(mean, rel=0.01)
    assert stats["std"] == pytest.approx({2: math.sqrt(2), 0.5: 0.5}.get(mean, 0), abs=1e-9 * mean)


def test_measure_of_nothing():
    assert measure(torch.empty(3, device="meta")) == {}
    assert measure(nn.parameter.UninitializedParameter()) == {}
    assert measure(torch.empty(0)) == {"nan": 0, "inf": 0, "-inf": 0}
    assert "mean" not in measure(torch.tensor([math.nan]))


def test_measure_leaves_gradients_alone():
    x = torch.randn(4, requires_grad=True)
    y = x * 2
    version = y._version
    measure(y)
    y.sum().backward()
    assert y._version == version
    assert x.grad.tolist() == [2, 2, 2, 2]


class Scores(nn.Module):
    """Attention whose mask, scale and dtype may be wrong."""

    def __init__(self, step):
        super().__init__()
        self.step, self.proj = step, nn.Linear(8, 8)

    def forward(self, x):
        scores = x @ x.mT
        scores = self.step(scores)
        return self.proj(scores.float().softmax(-1) @ x)


def plain(scores):
    return scores


def masked(scores):
    T = scores.shape[-1]
    mask = torch.full((T, T), -math.inf).triu(1)
    other = torch.zeros_like(scores).masked_fill(torch.ones(T, T).tril() == 0, float("-inf"))
    third = torch.where(torch.ones(T, T).tril() > 0, 0.0, -math.inf)
    fourth = (torch.ones(T, T) * float("-inf")).triu(1)
    fifth = torch.zeros(T, T)
    fifth[0, 1:] = -math.inf
    return scores + mask + other + third + fourth + fifth + torch.ones(T, T).tril().log()


def divided(scores):
    return scores / 0


def of_negative(scores):
    return torch.log(-scores.abs() - 1)


def overflow16(scores):
    return (scores.half() + 300) * 300


def overflow_bf16(scores):
    return (scores.bfloat16().abs() + 1e30) * 1e30


def all_masked(scores):
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool), -math.inf)


def divided_after_a_mask(scores):
    masked_scores = scores.masked_fill(torch.ones_like(scores).triu(1) > 0, -math.inf)
    return masked_scores / 0


@pytest.mark.parametrize("step", [plain, masked])
def test_expected_infinities_are_left_alone(step):
    with trace(Scores(step), probe=False, stats=True) as tr:
        tr.model(torch.rand(2, 4, 8))
    assert first_nonfinite(tr) is None
    assert "non-finite" not in str(tr)


@pytest.mark.parametrize(("step", "where", "what"), [
    (divided, "divided() ", "`scores / 0`: 32 inf"),
    (of_negative, "of_negative() ", "`torch.log(-scores.abs() - 1)`: 32 nan"),
    (overflow16, "overflow16() ", "`(scores.half() + 300) * 300`: 32 inf"),
    (overflow_bf16, "overflow_bf16() ", "`(scores.bfloat16().abs() + 1e30) * 1e30`: 32 inf"),
    (all_masked, "Scores ", "`scores.float().softmax(-1)`: 32 nan"),
    (divided_after_a_mask, "divided_after_a_mask() ", "`masked_scores / 0`: 32 inf"),
])  # fmt: skip
def test_first_value_that_is_not_finite(step, where, what):
    with trace(Scores(step), probe=False, stats=True) as tr:
        tr.model(torch.rand(2, 4, 8) + 1)
    line = first_nonfinite(tr)
    assert line.startswith(f"first non-finite value: {where}")
    assert line.endswith(what)
    assert "test_tracer_lints.py:" in line
    assert str(tr).endswith(line)


def test_a_value_that_came_in_not_finite():
    x = torch.rand(2, 4, 8)
    x[0, 0, :3] = math.nan
    with trace(Scores(plain), probe=False, stats=True) as tr:
        tr.model(x)
    assert first_nonfinite(tr) == "first non-finite value: argument 'x' of Scores.forward: 3 nan"
