"""Every fast way gives what the slow one gives: loss by pieces, stacked Muon, compiled attention, and their choice."""

import json

import pytest
import torch
import torch.nn.functional as F

from config import PRESETS, ModelConfig, TrainConfig
from lab import chunked_loss, fused_attention, machine, runs
from lab.muon import Muon
from lab.progress import Progress
from model import GPT
from train import Step, make_step, pick_kernel, pick_precision, train

CFG = ModelConfig(dim=32, num_layers=2, vocab_size=260, max_seq_len=48, num_q_heads=4, num_kv_heads=2)
PLAIN = TrainConfig(precision="fp32", kernel="plain", device="cpu", num_threads=1, max_iters=20, warmup_iters=0)


def randomised(cfg):
    """A model none of whose weights is zero: those that start there would hide an error."""
    model = GPT(cfg)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.1)
    return model


def no_kernel(level=None, say=print):
    raise fused_attention.Unavailable("no compiler was found")


@pytest.fixture
def compiled():
    try:
        return fused_attention.load()
    except fused_attention.Unavailable as reason:
        pytest.skip(str(reason))


# ---------------------------------------------------------------- loss by pieces


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, {"tied_head": False}, {"embed_dim": 8}, {"logit_cap": 3.0}], ids=str)
def test_loss_by_pieces_equals_the_whole(monkeypatch, changes, precision):
    monkeypatch.setattr(chunked_loss, "ROWS", 40)  # 3 x 48 positions: pieces of 40, 40, 40 and 24
    model = randomised(CFG.replace(**changes))
    x, y = torch.randint(0, 260, (2, 3, 48))
    losses, grads = [], []
    for by_pieces in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            features = model.features(x)
            logits = model.head(features)
            pieces = chunked_loss.cross_entropy(features, y, model.head)
        loss = pieces if by_pieces else F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        (3 * loss).backward()
        losses.append(loss.item())
        grads.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad(set_to_none=True)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    close = dict(atol=1e-6, rtol=1e-5) if precision == "fp32" else dict(atol=2e-4, rtol=0.02)
    for name in grads[0]:
        torch.testing.assert_close(grads[1][name], grads[0][name], **close, msg=name)


def test_loss_by_pieces_leaves_frozen_weights_alone():
    model = GPT(CFG.replace(tied_head=False))
    model.head.weight.requires_grad_(False)
    x = torch.randint(0, 260, (2, 48))
    chunked_loss.cross_entropy(model.features(x), x, model.head).backward()
    assert model.head.weight.grad is None and model.embed.weight.grad is not None


def test_loss_by_pieces_never_holds_all_logits():
    features, head = torch.randn(16, 1024, 4, requires_grad=True), torch.nn.Linear(4, 500, bias=False)
    largest, ids = 0, torch.zeros(16, 1024, dtype=torch.int64)

    def look(tensor):
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        chunked_loss.cross_entropy(features, ids, head).backward()
    assert 0 < largest <= chunked_loss.ROWS * 500 < ids.numel() * 500


# ---------------------------------------------------------------- Muon in stacks


def test_stacked_muon_equals_pytorchs():
    shapes = [(16, 16), (16, 16), (40, 16), (16, 40), (16, 40), (40, 16), (16, 16)]
    ours, theirs = ([torch.nn.Parameter(torch.randn(shape)) for shape in shapes] for _ in range(2))
    for a, b in zip(ours, theirs, strict=True):
        b.data.copy_(a.data)
    kinds = ((Muon, ours), (torch.optim.Muon, theirs))
    optimizers = [kind(params, lr=0.02, weight_decay=0.1) for kind, params in kinds]
    for step in range(5):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            b.grad = None if (step, i) == (0, 1) else torch.randn(a.shape)  # a matrix may be left out of a step
            a.grad = None if b.grad is None else b.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 0.02 * 5 * 0.02, "2 % of the five steps' length: rounding in bf16"
    a, b = (optimizer.state_dict() for optimizer in optimizers)
    assert a["param_groups"] == b["param_groups"]
    for i in a["state"]:
        torch.testing.assert_close(a["state"][i]["momentum_buffer"], b["state"][i]["momentum_buffer"])


def test_stacked_muon_goes_on_from_pytorchs_state():
    theirs = torch.nn.Parameter(torch.randn(8, 8))
    old = torch.optim.Muon([theirs], lr=0.1)
    theirs.grad = torch.randn(8, 8)
    old.step()
    new = Muon([torch.nn.Parameter(theirs.detach().clone())], lr=0.1)
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.state_dict()["state"][0]["momentum_buffer"], old.state_dict()["state"][0]["momentum_buffer"])
    with pytest.raises(ValueError, match="closure"):
        new.step(lambda: 0)


# ---------------------------------------------------------------- compiled attention in a step


def test_a_step_with_the_compiled_attention_equals_the_plain_one(compiled):
    x, y = torch.randint(0, 260, (2, 3, 48))
    model = randomised(CFG)
    grads, losses = [], []
    for kernel in ("plain", "compiled"):
        step = Step(model, PLAIN.replace(kernel=kernel))
        assert (step.fused is not None) == (kernel == "compiled")
        losses.append(step.backward(x, y))
        grads.append([p.grad for p in model.parameters()])
        model.zero_grad(set_to_none=True)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_the_step_uses_the_compiled_attention(compiled, monkeypatch):
    calls, real = [], fused_attention.Fused.__call__

    def counted(self, *inputs):
        calls.append(inputs[0].shape)
        return real(self, *inputs)

    monkeypatch.setattr(fused_attention.Fused, "__call__", counted)
    make_step(CFG, PLAIN.replace(kernel="compiled"), "cpu").backward(*torch.randint(0, 260, (2, 3, 48)))
    assert calls == [(3, 4, 48, 8)] * 2, "once in each layer"


def test_no_compiled_attention_is_said_and_replaced_or_refused(monkeypatch):
    monkeypatch.setattr(fused_attention, "load", no_kernel)
    said = []
    assert pick_kernel("auto", torch.device("cpu"), said.append) == "plain"
    assert said == ["attention in plain PyTorch: no compiler was found"]
    with pytest.raises(ValueError, match="kernel='compiled' can't be had here: no compiler was found"):
        make_step(CFG, PLAIN.replace(kernel="compiled"), "cpu")
    assert pick_kernel("auto", torch.device("cuda")) == "plain"
    with pytest.raises(ValueError, match="kernel='compiled' is for a CPU, not for device='cuda'"):
        pick_kernel("compiled", torch.device("cuda"))


def test_a_compiled_graph_equals_plain_steps(monkeypatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: real(function, backend="eager", fullgraph=True))
    x, y = torch.randint(0, 260, (2, 3, 48))
    steps = [make_step(CFG, PLAIN.replace(compile=graph), "cpu") for graph in (False, True)]
    assert [steps[0](x, y) for _ in range(3)] == pytest.approx([steps[1](x, y) for _ in range(3)], rel=1e-5)


# ---------------------------------------------------------------- the choice, and its record


@pytest.fixture
def tcfg(tmp_path, monkeypatch):
    monkeypatch.setenv("SANDBOX_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    stories = [f"Cat {i} sat on mat {i % 7} and was happy.\n<|endoftext|>\n" for i in range(200)]
    text.write_text("".join(stories), encoding="utf-8")
    return PLAIN.replace(
        model_name="run", dataset=str(text), tokenizer="byte", max_iters=4, eval_interval=4, eval_documents=1,
        checkpoint_interval=100, sample_prompt="", precision="auto", kernel="auto",
    )  # fmt: skip


def fastest(monkeypatch, precision, kernel, tried):
    """Makes trial steps of this precision and kernel the fastest, and notes which were tried."""
    monkeypatch.setattr("train.pick_precision", lambda name, device: "bf16" if name == "auto" else name)
    monkeypatch.setattr("train.pick_kernel", lambda name, device, say=print: "compiled" if name == "auto" else name)

    def trial(self, model, tcfg, x, y):
        tried.append((tcfg.precision, tcfg.kernel))
        return 1.0 if tried[-1] == (precision, kernel) else 2.0

    monkeypatch.setattr("train._Job._trial", trial)


def test_the_fastest_trial_is_chosen_recorded_and_kept_on_resume(tcfg, tmp_path, monkeypatch):
    class Stop(Progress):
        def step(self, *_):
            raise KeyboardInterrupt

    class Listening(Progress):
        def __init__(self):
            super().__init__()
            self.said = []

        def say(self, line):
            self.said.append(line)

    tried, listening = [], Listening()
    fastest(monkeypatch, "bf16", "plain", tried)
    with pytest.raises(KeyboardInterrupt):
        train(CFG, tcfg, root=tmp_path, progress=Stop())
    three = [("bf16", "compiled"), ("fp32", "compiled"), ("bf16", "plain")]
    assert tried == [*three, ("bf16", "plain")], "three trials, and one step of the chosen kind for the first line"
    saved = json.loads((runs.newest_checkpoint(tmp_path / "run") / "configs.json").read_text())["train"]
    assert (saved["precision"], saved["kernel"]) == ("bf16", "plain")

    tried.clear()
    fastest(monkeypatch, "fp32", "compiled", tried)  # on resume another choice would win, but none is made
    run = train(CFG, tcfg, root=tmp_path, progress=listening)
    assert tried == [("bf16", "plain")] and run.folder.name == "run" and run.finished
    assert run.record["machine"]["precision"] == "bf16" and run.record["machine"]["kernel"] == "plain"
    first_line = next(line for line in listening.said if "in bf16, plain attention: " in line)
    assert "tokens/s" in first_line and "GFLOP/s" in first_line and "(MFU)" in first_line
    assert run.record["speed"]["tokens_per_second"] == 4 * 48 / 2.0, "by the trial of 2 seconds"
    assert 0 < run.record["speed"]["mfu"] < 1


def test_what_the_processor_is_made_for_wins_unless_clearly_slower(tcfg, tmp_path, monkeypatch, compiled):
    fastest(monkeypatch, "", "", [])  # all alike
    assert train(CFG, tcfg, root=tmp_path, progress=Progress()).record["machine"]["kernel"] == "compiled"


def test_settings_that_are_given_are_not_tried(tcfg, tmp_path, monkeypatch):
    tried = []
    fastest(monkeypatch, "bf16", "compiled", tried)
    train(CFG, tcfg.replace(precision="fp32", kernel="plain"), root=tmp_path, progress=Progress())
    assert tried == [("fp32", "plain")], "the step for the first line alone"
    with pytest.raises(ValueError, match="kernel='fast' is unknown; choose from auto, plain, compiled"):
        tcfg.replace(kernel="fast")


def test_trials_leave_weights_and_random_state_alone(tcfg, tmp_path, monkeypatch):
    monkeypatch.setattr(fused_attention, "load", no_kernel)
    monkeypatch.setattr("train.pick_precision", lambda name, device: "fp32" if name == "auto" else name)
    tcfg = tcfg.replace(seed=5)
    models = [
        train(CFG.replace(dropout_rate=0.2), tcfg.replace(model_name=name, **given), root=tmp_path, progress=Progress())
        for name, given in (("tried", {}), ("given", dict(precision="fp32", kernel="plain")))
    ]
    for a, b in zip(*(run.model.parameters() for run in models), strict=True):
        assert torch.equal(a, b)


def test_precision_is_never_fp16_on_a_cpu():
    assert pick_precision("auto", torch.device("cpu")) in ("bf16", "fp32")
    with pytest.raises(ValueError, match="precision='fp16' is unknown"):
        PLAIN.replace(precision="fp16")


# ---------------------------------------------------------------- what a step needs, what a machine can


def test_flops_of_a_token_are_those_of_the_matrices_and_half_of_the_attention():
    cfg = ModelConfig(dim=64, num_layers=8, vocab_size=2051, mlp_hidden=128, num_q_heads=8, head_dim=16)
    layer = 64 * 128 + 2 * 64 * 32 + 128 * 64 + 3 * 64 * 128
    attention = 6 * 8 * 128 * 512
    assert machine.flops_per_token(GPT(cfg), 512) == 6 * (8 * layer + 2051 * 64) + attention
    assert machine.flops_per_token(GPT(PRESETS["debug"]), 64) > 0


def test_the_limit_of_matrix_products_is_a_plausible_speed():
    assert 1e8 < machine.matmul_limit(torch.device("cpu"), "fp32") < 1e14
