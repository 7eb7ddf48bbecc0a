"""Products by oneDNN are products, whatever the layout; and what it is slow or wrong for does not reach it."""

import itertools

import pytest
import torch

from study.benches.training import Trainee
from wellcond import products
from wellcond.integrator import Factors, lowrank_step_
from wellcond.layers import LowRankLinear

needs_onednn = pytest.mark.skipif(products.ONEDNN is None, reason="torch was built without oneDNN")
LAYOUTS = {
    "rows": lambda A: A.contiguous(),
    "columns": lambda A: A.mT.contiguous().mT,
    "gaps": lambda A: torch.cat([A, A], dim=1)[:, : A.shape[1]],
}


@pytest.fixture
def calls(monkeypatch):
    """The shapes of the calls of oneDNN."""
    seen, original = [], products.ONEDNN

    def onednn(x, W, *rest):
        seen.append((tuple(x.shape), tuple(W.shape)))
        return original(x, W, *rest)

    monkeypatch.setattr(products, "ONEDNN", onednn)
    return seen


@needs_onednn
@pytest.mark.parametrize(("a", "b"), list(itertools.product(LAYOUTS, LAYOUTS)))
@pytest.mark.parametrize("shape", [(300, 100, 100), (100, 300, 100), (131, 137, 139)])
def test_products_of_every_layout(a, b, shape, calls):
    n, k, m = shape
    torch.manual_seed(0)
    A, B, C = LAYOUTS[a](torch.randn(n, k)), LAYOUTS[b](torch.randn(k, m)), torch.randn(n, m)
    exact = A.double() @ B.double()
    kept = A.clone(), B.clone()
    found = products.matmul(A, B)
    scale = (A.double().norm(dim=1)[:, None] * B.double().norm(dim=0)).amax()
    assert (found - exact).abs().amax() < 1e-6 * scale
    added = C.clone()
    products.add_product_(added, A, B, -0.5)
    torch.testing.assert_close(added.double(), C - 0.5 * exact, rtol=0, atol=1e-6 * scale.item())
    assert torch.equal(A, kept[0])
    assert torch.equal(B, kept[1])
    assert len(calls) == (0 if "gaps" in (a, b) else 2)


@needs_onednn
@pytest.mark.parametrize(
    ("A", "B"),
    [
        (torch.randn(8, 8), torch.randn(8, 8)),  # small
        (torch.randn(200, 200).double(), torch.randn(200, 200).double()),
        (torch.randn(2, 200, 200), torch.randn(2, 200, 200)),
        (torch.randn(200, 200).bfloat16(), torch.randn(200, 200).bfloat16()),
    ],
)
def test_all_else_is_multiplied_by_torch(A, B, calls):
    assert torch.equal(products.matmul(A, B), A @ B)
    products.add_product_(C := torch.zeros_like(A @ B), A, B, 2.0)
    torch.testing.assert_close(C, 2 * (A @ B))
    assert calls == []


@needs_onednn
def test_a_gradient_flows_through(calls):
    A, B = torch.randn(200, 200, requires_grad=True), torch.randn(200, 200)
    products.matmul(A, B).sum().backward()
    torch.testing.assert_close(A.grad, B.sum(1).expand(200, 200))
    assert calls == []


def test_a_torch_without_onednn(monkeypatch):
    monkeypatch.setattr(products, "ONEDNN", None)
    A, B = torch.randn(200, 200), torch.randn(200, 200)
    assert torch.equal(products.matmul(A, B), A @ B)


@needs_onednn
def test_not_a_number_is_not_lost():
    A = torch.randn(200, 200)
    A[3, 4] = torch.nan
    assert products.matmul(A, torch.randn(200, 200))[3].isnan().all()


@needs_onednn
def test_the_factors_of_a_network_are_stored_so_that_a_step_is_fast(calls):
    layer = LowRankLinear.from_dense(torch.nn.Linear(400, 300), 100)
    layer(torch.randn(8, 400)).square().mean().backward()
    W = Factors(layer.U, layer.S, layer.V)
    gradient = Factors(*(p.grad for p in W))
    with torch.no_grad():
        lowrank_step_(W, gradient, Factors(*map(torch.zeros_like, W)), lr=1e-3, beta=0.9, max_cond=1.1)
    tall = [call for call in calls if call != ((100, 100), (100, 100))]
    assert len(tall) == 10  # five for each basis


@needs_onednn
def test_flops_do_not_depend_on_who_multiplies(monkeypatch):
    trainee = Trainee("lenet5", "condlr", 0.5, 4, "channels_last", "cpu")
    flops = trainee.flops()
    monkeypatch.setattr(products, "ONEDNN", None)
    assert trainee.flops() == flops
