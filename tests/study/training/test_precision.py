"""bfloat16 by rounding is bfloat16: the products of torch's autocast, up to the order of its sums."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from study.training import precision
from study.training.loop import in_format

BITS = 2.0**-8  # a bfloat16 has 8 bits, the leading one included


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 9, 5)),
    )


def logits_and_gradients(context):
    """In the precision of a context."""
    model = network()
    x, y = torch.rand(16, 3, 16, 16), torch.arange(16) % 5
    with context:
        logits = model(x).float()
    nn.functional.cross_entropy(logits, y).backward()
    return [logits.detach(), *(p.grad for p in model.parameters())]


def difference(a, b):
    return max(((p - q).norm() / q.norm()).item() for p, q in zip(a, b, strict=True))


def test_a_step_is_that_of_autocast():
    """Every logit and gradient: a tenth as far from torch's bfloat16 as float32 is, at most."""
    native = logits_and_gradients(torch.autocast("cpu", torch.bfloat16))
    by_rounding = logits_and_gradients(precision.RoundedProducts(torch.bfloat16))
    single = logits_and_gradients(torch.enable_grad())
    assert difference(single, native) > BITS / 2
    assert difference(by_rounding, native) < difference(single, native) / 3


@pytest.mark.parametrize("product", [torch.matmul, torch.mm, lambda a, b: a @ b, nn.functional.linear])
def test_one_product_has_rounded_operands_and_a_rounded_result(product):
    torch.manual_seed(1)
    a, b = torch.randn(7, 7, requires_grad=True), torch.randn(7, 7, requires_grad=True)
    with precision.RoundedProducts(torch.bfloat16):
        y = product(a, b)
        z = a + b
    rounded = [t.detach().bfloat16().float() for t in (a, b)]
    assert torch.equal(y, product(*rounded).bfloat16().float())
    assert torch.equal(z, a + b)
    g = torch.randn(7, 7)
    y.backward(g)
    expected = [t.requires_grad_() for t in rounded]
    product(*expected).backward(g.bfloat16().float())
    assert torch.equal(a.grad, expected[0].grad.bfloat16().float())
    assert torch.equal(b.grad, expected[1].grad.bfloat16().float())


def test_other_types_and_contexts_are_left_alone():
    a = torch.randn(4, 4, dtype=torch.float64)
    with precision.RoundedProducts(torch.bfloat16):
        assert torch.equal(a @ a, torch.mm(a, a))
        assert (torch.ones(2, 2, dtype=torch.long) @ torch.ones(2, 2, dtype=torch.long)).dtype == torch.long
    b = torch.randn(4, 4)
    assert not torch.equal(b @ b, (b @ b).bfloat16().float())


def test_stacked_networks():
    """Under vmap, as several seeds train together."""
    models = [network().eval() for _ in range(3)]
    for k, model in enumerate(models):
        for p in model.parameters():
            p.data.mul_(1 + k / 10)
    x = torch.rand(4, 3, 16, 16)
    parameters, buffers = stack_module_state(models)
    with precision.RoundedProducts(torch.bfloat16):
        together = vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(parameters, buffers)
        alone = torch.stack([model(x) for model in models])
    torch.testing.assert_close(together, alone, rtol=2 * BITS, atol=2 * BITS)


@pytest.mark.parametrize("native", [True, False])
def test_training_takes_what_the_processor_has(monkeypatch, native):
    assert precision.native(torch.device("cuda"), torch.bfloat16)
    monkeypatch.setattr(precision, "native", lambda device, dtype: native)
    kind = type(precision.products_in("bfloat16", torch.device("cpu")))
    assert kind is (torch.autocast if native else precision.RoundedProducts)
    model, x = network().eval(), torch.rand(2, 3, 16, 16)
    y = in_format(model, "bfloat16")(x)
    assert y.dtype == torch.float32
    assert 0 < (y - model(x)).norm() < 4 * BITS * model(x).norm()
