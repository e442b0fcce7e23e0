"""lab/tracer/card.py, hints.py, repair.py: what an exception carries when it leaves a traced call."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lab.tracer.card
from config import ModelConfig
from model import GPT, MQA
from tools import LoggingModule, log_io, trace

CFG = ModelConfig(
    dim=64, num_layers=3, num_q_heads=8, num_kv_heads=2, head_dim=16, mlp_hidden=128, vocab_size=512, max_seq_len=40
)


def fails(module, *args, kind=Exception, **options):
    """The exception of a traced call and its card."""
    with pytest.raises(kind) as caught, trace(module, names=CFG, **options) as tr:
        module(*args)
    return caught.value, tr.card


class Heads(LoggingModule):
    """Attention by hand, with an additive mask as an argument. `fault` breaks one thing."""

    def __init__(self, cfg, fault=""):
        super().__init__()
        self.cfg, self.fault = cfg, fault
        self.Wq = nn.Linear(cfg.dim, cfg.num_q_heads * cfg.head_dim)
        self.Wo = nn.Linear(cfg.num_q_heads * cfg.head_dim, cfg.dim)

    def split(self, x):
        return x.unflatten(-1, (self.cfg.num_q_heads, self.cfg.head_dim)).transpose(1, 2)

    @log_io
    def forward(self, x, mask):
        T = x.shape[1]
        q = self.split(self.Wq(x))
        if self.fault == "transpose":
            logits = q @ q
        else:
            logits = q @ q.transpose(-1, -2)
        if self.fault == "slice":
            logits = logits + mask
        else:
            logits = logits + mask[:T, :T]
        out = logits.softmax(-1) @ q
        if self.fault == "view":
            return self.Wo(out.transpose(1, 2).view(x.shape[0], T, -1))
        return self.Wo(out.transpose(1, 2).flatten(2))


def line_of(text):
    """The line of this file that ends with a text."""
    with open(__file__) as file:
        return next(number for number, line in enumerate(file, start=1) if line.rstrip().endswith(text))


@pytest.fixture
def x():
    return torch.randn(2, 12, 64)


def test_the_exception_stays_what_it_is_and_carries_one_note(x):
    error, card = fails(Heads(CFG, "slice"), x, torch.zeros(40, 40), kind=RuntimeError)
    assert type(error) is RuntimeError and "must match the size" in str(error)
    assert error.__notes__ == [str(card)] and error.__cause__ is None and error.__context__ is None


def test_the_card_of_a_mask_that_was_not_cut(x):
    """The line, both operands with names and numbers, where each came from, the clash, and a change that mends it."""
    _, card = fails(Heads(CFG, "slice"), x, torch.zeros(40, 40))
    assert (card.file, card.line) == (__file__, line_of("logits = logits + mask"))
    text = str(card)
    assert text.startswith("✗ Heads     test_tracer_cards.py:") and "\n    logits + mask\n" in text
    assert "logits  (B,H,T,T) = (2,8,12,12)  from :" in text
    assert "(40,40)" in text and "argument 'mask' of Heads.forward" in text
    assert "clash: dim -1, T=12 against" in text and "last good: " in text
    assert "`mask` → `mask[:T, :T]`" in text and "also with" in text
    assert card.fix.line == card.line


def test_a_mask_that_is_too_short_cannot_be_mended_but_is_named(x):
    _, card = fails(Heads(CFG), x, torch.zeros(8, 8))
    assert card.fix is None
    assert "was built for 8 places but logits has T=12: build it for the longest row" in str(card)


@pytest.mark.parametrize(
    ("fault", "old", "new"),
    [("transpose", "q @ q", "transpose(-2, -1)"), ("view", "view", "reshape"), ("slice", "mask", "mask[:T, :T]")],
)
def test_fixes_mend_the_source(fault, old, new, x):
    """Applied to the text of the file, the fix changes the one line and gives what the right module gives."""
    module, mask = Heads(CFG, fault), torch.zeros(40, 40)
    _, card = fails(module, x, mask)
    with open(__file__) as file:
        source = file.read()
    mended = card.fix.apply(source)
    changed = [(a, b) for a, b in zip(source.splitlines(), mended.splitlines(), strict=True) if a != b]
    assert len(changed) == 1 and old in changed[0][0] and new in changed[0][1]
    space = {}
    exec(compile(mended, "mended", "exec"), space)
    twin = space["Heads"](CFG, fault)
    twin.load_state_dict(module.state_dict())
    right = Heads(CFG)
    right.load_state_dict(module.state_dict())
    torch.testing.assert_close(twin(x, mask), right(x, mask))


class Plain(nn.Module):
    """One function as forward."""

    def __init__(self, function, cfg=CFG, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args):
        return self.function(self, *args)


def narrow(self, x):
    return self.layer(x)


def look_up(self, ids):
    return self.table(ids)


def loss(self, logits, targets):
    return F.cross_entropy(logits, targets)


def mixed(self, x):
    return self.layer(x.bfloat16())


def elsewhere(self, x):
    return x + torch.zeros(64, device="meta")


def wrong_view(self, x):
    return x.view(2, 8, 16, 7)


def grouped(self, x):
    q, k = x.view(2, 16, 8, 8).transpose(1, 2), x[..., :16].view(2, 16, 2, 8).transpose(1, 2)
    return q @ k.mT


def cut(self, x):
    return torch.cat((x, x[:, :, :5]), dim=1)


@pytest.mark.parametrize(
    ("function", "layers", "args", "words"),
    [
        (narrow, {"layer": nn.Linear(32, 5)}, (torch.ones(2, 16, 64),), ["in_features=32", "made for 32 inputs"]),
        (look_up, {"table": nn.Embedding(9, 4)}, (torch.rand(2, 16),), ["ids.long()"]),
        (look_up, {"table": nn.Embedding(9, 4)}, (torch.full((2, 16), 9),), ["outside 0..8"]),
        (loss, {}, (torch.rand(2, 16, 5), torch.zeros(2, 16, dtype=torch.long)), ["transpose(1, 2)"]),
        (mixed, {"layer": nn.Linear(64, 5)}, (torch.ones(2, 16, 64),), ["bfloat16 against float32", ".float()"]),
        (elsewhere, {}, (torch.ones(2, 16, 64),), ["cpu and meta", ".to(device)"]),
        (wrong_view, {}, (torch.ones(2, 16, 64),), ["holds 2,048 numbers", "1,792"]),
        (grouped, {}, (torch.ones(2, 16, 64),), ["8", "2", "clash"]),
        (cut, {}, (torch.ones(2, 16, 64),), ["joined along dim 1, but dim 2 differs"]),
    ],
)  # fmt: skip
def test_errors_that_people_make(function, layers, args, words):
    _, card = fails(Plain(function, **layers), *args)
    for word in words:
        assert word in str(card), str(card)


def test_a_decode_state_of_other_rows():
    model = GPT(CFG)
    ctx = model.context(torch.zeros(2, 4, dtype=torch.long), decode=True)
    with torch.no_grad():
        model(torch.zeros(2, 4, dtype=torch.long), ctx)
        _, card = fails(model, torch.zeros(5, 1, dtype=torch.long), ctx)
    assert "decode state of other rows than these 5" in str(card)


def test_a_layer_that_was_replaced_after_construction():
    model = GPT(CFG)
    model.layers[1].attn.Wo = nn.Linear(64, 64)
    _, card = fails(model, torch.zeros(2, 16, dtype=torch.long))
    assert "› layers.1 › attn" in card.title and card.fix is None
    assert "layers.1.attn.Wo.weight is (64, 64), but the constructor makes it (64, 128)" in str(card)


def test_what_was_raised_on_purpose_gets_no_advice():
    """The model's own message says what is wrong; changing the check would be bad advice."""
    error, card = fails(GPT(CFG), torch.full((2, 16), 600), kind=ValueError)
    assert "outside 0..511" in str(error)
    assert card.fix is None and card.hint == "" and "check_tokens()" in card.title


def test_asserts_and_plain_python_errors_get_the_path_and_shapes(x):
    def asserts(self, x):
        h = self.layer(x)
        assert h.shape == x.shape, "width changed"

    def unpacks(self, x):
        a, _, _ = x.chunk(2, dim=-1)
        return a

    def misspells(self, x):
        return x.cos().layre()

    error, card = fails(Plain(asserts, layer=nn.Linear(64, 9)), x, kind=AssertionError)
    assert str(error).startswith("width changed") and "h  (B,T,9) = (2,12,9)" in str(card)
    error, card = fails(Plain(unpacks), x, kind=ValueError)
    assert "last good: chunk" in str(card) and "x.chunk(3, dim=-1)" in str(card)
    error, card = fails(Plain(misspells), x, kind=AttributeError)
    assert card.line == misspells.__code__.co_firstlineno + 1 and "last good: cos" in str(card)


def test_the_search_leaves_everything_as_it_was(x, capsys):
    """Functions keep their code, modules their state, random generators their state; prints are not repeated."""
    module, mask = Heads(CFG, "slice"), torch.zeros(40, 40)
    codes = Heads.forward.__code__, Heads.__init__.__code__, Heads.split.__code__
    before = copy.deepcopy(module.state_dict())
    versions = [p._version for p in module.parameters()]
    torch.manual_seed(5), random.seed(5)
    states = torch.get_rng_state(), random.getstate()
    _, card = fails(module, x, mask)
    assert card.fix is not None
    assert (Heads.forward.__code__, Heads.__init__.__code__, Heads.split.__code__) == codes
    assert all(
        a is b for a, b in zip((Heads.forward.__code__, Heads.split.__code__), (codes[0], codes[2]), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(before.values(), module.state_dict().values(), strict=True))
    assert [p._version for p in module.parameters()] == versions
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert capsys.readouterr().out == ""


def test_without_probes_nothing_runs_twice(x):
    runs = []

    def counts(self, x):
        runs.append(1)
        return x @ x

    _, card = fails(Plain(counts), x, probe=False)
    assert len(runs) == 1 and card.fix is None and card.clash


def test_an_interruption_is_passed_on_at_once(x):
    runs = []

    def interrupted(self, x):
        runs.append(1)
        raise KeyboardInterrupt

    fails(Plain(interrupted), x, kind=KeyboardInterrupt)
    assert len(runs) == 1


def test_the_tracers_own_failure_does_not_hide_the_exception(x, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("in the tracer")

    monkeypatch.setattr(lab.tracer.card, "make_card", broken)
    error, card = fails(Heads(CFG, "slice"), x, torch.zeros(40, 40), kind=RuntimeError)
    assert "must match the size" in str(error) and card is None
    assert "could not explain this exception: ZeroDivisionError: in the tracer" in error.__notes__[0]


def test_errors_outside_of_the_model_get_no_card(x):
    module = MQA(CFG)
    with pytest.raises(ZeroDivisionError) as caught, trace(module, names=CFG) as tr:
        module(x)
        1 / 0  # noqa: B018
    assert tr.card is None and not getattr(caught.value, "__notes__", [])


def test_an_exception_that_was_caught_inside_is_not_reported(x):
    def catches(self, x):
        try:
            x @ x
        except RuntimeError:
            return x
        raise AssertionError

    with trace(Plain(catches), names=CFG) as tr:
        tr.model(x)
    assert tr.card is None and "✗" not in str(tr).replace("→ ✗", "")


def test_a_method_that_is_called_by_itself_is_mended_too(x):
    class Parts(Plain):
        def mix(self, x):
            return x.transpose(1, 2).view(x.shape[0], -1)

    with pytest.raises(RuntimeError), trace(Parts(cut), names=CFG) as tr:
        tr.model.mix(x)
    assert "mix()" in tr.card.title and "`view` → `reshape`" in tr.card.fix.text()
