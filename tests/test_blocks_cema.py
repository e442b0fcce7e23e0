"""CEMA: its convolution and its scan against the recurrence written out, and the rules that every block keeps."""

import pytest
import torch

from blocks.cema import CEMA
from config import ModelConfig
from model import GPT, make_context

SMALL = ModelConfig(dim=6, num_layers=1, vocab_size=50, max_seq_len=40, num_q_heads=1, num_kv_heads=1)


def block(state=5) -> CEMA:
    made = CEMA(SMALL, state=state).double()
    torch.nn.init.normal_(made.gamma_imag)  # it starts at zero, which would hide errors
    return made


def by_hand(cema: CEMA, x, starts=(0,)):
    """The docstring's equations, token by token."""
    D, N = cema.cfg.dim, len(cema.alpha) // cema.cfg.dim
    alpha, delta = cema.alpha.view(D, N).sigmoid(), cema.delta.view(D, N).sigmoid()
    angle = torch.stack([cema.theta.sigmoid() * 2 * torch.pi * n / N for n in range(1, N + 1)], dim=1)
    q = (1 - alpha * delta) * torch.exp(1j * angle)
    gamma = torch.complex(cema.gamma_real, cema.gamma_imag).view(D, N) / N**0.5
    h, out = 0, []
    for t in range(x.shape[1]):
        h = (0 if t in starts else q * h) + alpha * x[:, t, :, None]
        out.append((gamma * h).sum(-1).real + cema.omega * x[:, t])
    return torch.stack(out, dim=1)


@pytest.mark.parametrize("length", [1, 2, 13])
@pytest.mark.parametrize("state", [1, 5])
def test_convolution_and_scan_equal_the_recurrence(length, state):
    cema, x = block(state), torch.randn(3, length, 6, dtype=torch.float64)
    expected = by_hand(cema, x)
    torch.testing.assert_close(cema(x), expected)
    scanned = cema.scan(x, make_context(SMALL, x)) + cema.omega * x
    torch.testing.assert_close(scanned, expected)


def test_both_forms_have_the_same_gradients():
    cema, x = block(), torch.randn(3, 13, 6, dtype=torch.float64, requires_grad=True)
    weight, inputs = torch.randn_like(x), (x, *(p for name, p in cema.named_parameters() if name != "omega"))
    forms = cema.convolve(x), cema.scan(x, make_context(SMALL, x))
    for a, b in zip(*(torch.autograd.grad((y * weight).sum(), inputs) for y in forms), strict=True):
        torch.testing.assert_close(a, b)


def test_the_kernel_is_the_answer_to_a_single_one():
    cema, x = block(), torch.zeros(1, 9, 6, dtype=torch.float64)
    x[:, 0] = 1.0
    answer = by_hand(cema, x)[0] - cema.omega * x[0]
    torch.testing.assert_close(cema.kernel(x), answer.T)


def test_documents_start_anew():
    cema, x = block(), torch.randn(1, 11, 6, dtype=torch.float64)
    segments = torch.tensor([[0] * 4 + [1] * 7])
    torch.testing.assert_close(cema(x, make_context(SMALL, x, segments=segments)), by_hand(cema, x, starts=(0, 4)))


def test_extreme_parameters_stay_finite():
    for value in (-100.0, 100.0):  # nothing is forgotten; everything is
        cema = CEMA(SMALL)
        cema.alpha.data.fill_(value)
        cema.delta.data.fill_(value)
        y = cema(torch.randn(2, 40, 6))
        y.square().sum().backward()
        assert y.isfinite().all() and all(p.grad.isfinite().all() for p in cema.parameters())


def test_decode_state_is_as_large_as_documented():
    model = GPT(SMALL.replace(recipe="Norm->CEMA(state=5)->+"))
    ctx = model.context(torch.zeros(2, 1, dtype=torch.int64), decode=True)
    model(torch.zeros(2, 1, dtype=torch.int64), ctx)
    ((_, kept),) = ctx.cache.values()
    assert torch.view_as_real(kept[:, 1:]).numel() == 2 * (2 * 6 * 5)  # of two rows, without the one to rewind to


def test_wrong_state_is_refused():
    with pytest.raises(ValueError, match="state=0 must be at least 1"):
        CEMA(SMALL, state=0)
