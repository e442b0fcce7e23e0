"""Every registered block passes the generic checks; wrong blocks do not, and the right check says so.

A new block needs no line here: the registry is what is gone through. Its oracle stands in its family's own file.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

import blocks  # noqa: F401  registers the catalogue
from lab.checks import CHECKS, SMALL, check_block
from model import LAYERS
from tools import LoggingModule, log_io

FAMILIES = {name: cls for name, cls in LAYERS.items() if cls.__module__.split(".")[0] in ("model", "blocks")}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_registered_block(name):
    report = check_block(name)
    if report.failed == ["time"]:  # once more, in case the machine was busy
        report = check_block(name)
    assert report.ok, str(report)


@pytest.mark.parametrize("recipe", ["Norm->[Attn|MLP]->+", "Norm->Attn->+||MLP->+", "{Norm->Attn->+}^2->MLP#a->+"])
def test_a_whole_layer_is_checked_as_a_recipe(recipe):
    report = check_block(recipe)
    assert report.ok and [result.name for result in report.results] == list(CHECKS)


# ---------------------------------------------------------------- blocks that are wrong


class Linear(LoggingModule):
    """A block in which nothing is wrong yet."""

    causal, decodes, last = True, True, "Wo"

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.Wo = nn.Linear(cfg.dim, cfg.dim, bias=False)

    @log_io
    def forward(self, x, ctx=None):
        return self.Wo(x)


class Average(Linear):
    """The mean of all tokens up to here, decoded rightly and refusing packed rows: to be made wrong below."""

    @log_io
    def forward(self, x, ctx=None):
        if ctx.segments is not None:
            raise ValueError("segments: the mean goes on over a document's border")
        count = ctx.positions.expand(x.shape[:2]) + 1
        total = self.before(x, ctx)[:, None] + x.cumsum(1)
        if ctx.cache is not None:
            self.keep(ctx, total)
        return self.Wo(total / count[..., None])

    def before(self, x, ctx):
        if ctx.cache is None or ctx.slot not in ctx.cache:
            return torch.zeros(len(x), x.shape[2], dtype=x.dtype)
        return ctx.cache[ctx.slot][torch.arange(len(x)), ctx.positions[:, 0] - 1]

    def keep(self, ctx, total):
        """All totals, so that the last ones may be taken back."""
        old = ctx.cache.get(ctx.slot, total[:, :0])
        longer = torch.cat((old, torch.zeros_like(total)), dim=1)
        ctx.cache[ctx.slot] = longer.scatter(1, ctx.positions[..., None].expand_as(total), total)


class SeesTheFuture(Linear):
    def forward(self, x, ctx=None):
        return self.Wo(x.roll(-1, dims=1))


class SeesTheMean(Linear):
    decodes = False

    def forward(self, x, ctx=None):
        return self.Wo(x + x.mean(dim=1, keepdim=True))


class SeesOtherRows(Linear):
    def forward(self, x, ctx=None):
        return self.Wo(x) + x.mean(dim=0, keepdim=True)


class KeepsStateOnTheModule(Average):
    """Two layers that share it get one state between them."""

    def before(self, x, ctx):
        if ctx.cache is None or int(ctx.positions[0, 0]) == 0:
            return torch.zeros(len(x), x.shape[2], dtype=x.dtype)
        return self.state

    def keep(self, ctx, total):
        self.state = total[:, -1]


class CountsCalls(Linear):
    calls = 0

    def forward(self, x, ctx=None):
        self.calls += 1
        return self.Wo(x)


class ForgetsWhileDecoding(Average):
    def keep(self, ctx, total):
        super().keep(ctx, 0 * total)


class DecodesOneTokenOnly(Average):
    """Right one by one; of several tokens it keeps the first."""

    def keep(self, ctx, total):
        super().keep(ctx, total[:, :1].expand_as(total))


class CannotBeRewound(Average):
    """Takes what it saw last for the token before, whatever the positions say."""

    def before(self, x, ctx):
        known = ctx.cache is not None and ctx.slot in ctx.cache
        return ctx.cache[ctx.slot] if known else super().before(x, ctx)

    def keep(self, ctx, total):
        ctx.cache[ctx.slot] = total[:, -1]


class DeadParameter(Linear):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.unused = nn.Parameter(torch.ones(cfg.dim))


class DeadThroughZero(Linear):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.scale = nn.Parameter(torch.ones(cfg.dim))

    def forward(self, x, ctx=None):
        return self.Wo(x) + 0 * self.scale


class WrongGradient(Linear):
    def forward(self, x, ctx=None):
        return self.Wo(x) * x.detach()


class NotFiniteInBf16(Linear):
    """1 - sigmoid(x) is zero in bf16 from x = 6 on."""

    def forward(self, x, ctx=None):
        gate = x.tanh().mul(8).sigmoid()
        return self.Wo(x) + torch.log(1 - gate)


class LeavesBf16(Linear):
    def forward(self, x, ctx=None):
        return self.Wo(x).to(torch.promote_types(x.dtype, torch.float32))


class SeesOtherDocuments(Average):
    def forward(self, x, ctx=None):
        return super().forward(x, replace(ctx, segments=None))


class WrongShape(Linear):
    def forward(self, x, ctx=None):
        return self.Wo(x)[:, :1]


class OtherWhenTraced(Linear):
    def forward(self, x, ctx=None):
        import sys

        return self.Wo(x) * (2 if sys.getprofile() is not None else 1)


class HasUnnamedDimensions(Linear):
    def forward(self, x, ctx=None):
        padded = torch.cat((x, x.new_zeros(*x.shape[:2], 91 - (x.shape[-1] * 7) % 53)), dim=-1)
        return self.Wo(padded[..., : x.shape[-1]])


class CannotLearn(Linear):
    def forward(self, x, ctx=None):
        return self.Wo(x) + 1e4


class IsSlow(Linear):
    """A loop over the tokens, and not even a short one."""

    def forward(self, x, ctx=None):
        for _ in range(6):
            x = torch.stack([self.Wo(token).tanh() for token in x.unbind(1)], dim=1)
        return x


class KeepsMoreThanItSays(Average):
    """Decode state: D numbers per row."""

    def keep(self, ctx, total):
        super().keep(ctx, total)
        rows = ctx.cache[ctx.slot]
        ctx.cache["room"] = rows.new_zeros(len(rows), self.cfg.max_seq_len)


class SaysItKeepsNothing(Average):
    """Decode state: none."""


def test_blocks_that_are_right_pass():
    before = set(LAYERS)
    for cls in (Linear, Average):
        assert check_block(cls).ok
    assert LAYERS.keys() == before, "a class that was not registered is not registered afterwards"


WRONG = {
    SeesTheFuture: "causality",
    SeesTheMean: "causality",
    SeesOtherRows: "rows of a batch",
    KeepsStateOnTheModule: "nothing kept",
    CountsCalls: "nothing kept",
    ForgetsWhileDecoding: "decoding",
    DecodesOneTokenOnly: "decoding in pieces",
    CannotBeRewound: "rows of other lengths",
    DeadParameter: "gradients",
    DeadThroughZero: "gradients",
    WrongGradient: "gradcheck",
    NotFiniteInBf16: "bf16",
    LeavesBf16: "bf16",
    SeesOtherDocuments: "packed documents",
    WrongShape: "shapes",
    OtherWhenTraced: "trace",
    HasUnnamedDimensions: "trace",
    CannotLearn: "learns",
    IsSlow: "time",
    KeepsMoreThanItSays: "state size",
    SaysItKeepsNothing: "state size",
}


@pytest.mark.parametrize("cls", WRONG, ids=lambda cls: cls.__name__)
def test_a_wrong_block_is_caught_by_the_right_check(cls):
    report = check_block(cls)
    assert WRONG[cls] in report.failed, str(report)
    assert not report.ok and "FAILED" in str(report) and "✗" in report._repr_html_()


def test_the_report_is_a_table_of_what_was_measured():
    report = check_block("MQA")
    lines = str(report).splitlines()
    assert lines[0] == f"MQA: {len(CHECKS)} passed" and len(lines) == 1 + len(CHECKS)
    assert any(line.startswith("✓ state size") and line.endswith("as documented") for line in lines)
    assert any("1,920 numbers a row and layer, per token" in line for line in lines)  # 2 x Tmax x G x K
    assert report._repr_html_().count("<tr>") == len(CHECKS) and repr(report) == str(report)


def test_what_a_block_declares_is_not_checked_against_it():
    class NotCausal(SeesTheMean):
        causal = False

        def forward(self, x, ctx=None):
            if ctx.segments is not None:
                raise ValueError("segments: this block looks at the whole row")
            return super().forward(x, ctx)

    report = check_block(NotCausal)
    assert report.ok, str(report)
    skipped = [result.name for result in report.results if result.passed is None]
    assert skipped == ["causality", "decoding", "decoding in pieces", "rows of other lengths", "state size"]


def test_names_and_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="unknown block 'MQQ'; did you mean 'MQA'"):
        check_block("MQQ")
    with pytest.raises(ValueError, match="unknown block 'Atn' at column 7"):
        check_block("Norm->Atn->+")
    assert check_block("MQA", SMALL.replace(dim=48, num_kv_heads=1)).ok


def test_the_random_state_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    check_block("MLP")
    assert torch.equal(torch.rand(1), expected)
