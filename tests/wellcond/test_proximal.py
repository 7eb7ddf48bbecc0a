"""Proximal SGD: on a quadratic it finds the thresholded matrix, whatever the number of steps between two maps."""

import pytest
import torch

from helpers import matrix_with, randn
from wellcond.methods.proximal import ProximalSGD, singular_value_threshold


def minimized(A, steps, **options):
    """min ||W - A||²/2 + λ ||W||_*, from zero."""
    W = torch.nn.Parameter(torch.zeros_like(A))
    optimizer = ProximalSGD([{"params": [W], "kind": "thresholded", **options}], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        ((W - A).square().sum() / 2).backward()
        optimizer.step()
    return W.detach()


def test_a_map_after_each_step_converges_to_the_minimizer():
    A = matrix_with([3.0, 2.0, 1.0, 0.4, 0.1])
    W = minimized(A, 400, threshold=0.5, every=1)
    torch.testing.assert_close(W, singular_value_threshold(A, 0.5), rtol=0, atol=1e-10)
    assert torch.linalg.matrix_rank(W) == 3


def test_maps_between_every_few_steps_are_a_consistent_splitting():
    """The fixed point is off by a splitting error of first order in every · lr, here at most 2/3 of the threshold."""
    A = matrix_with([3.0, 2.0, 1.0, 0.4, 0.1])
    best = singular_value_threshold(A, 0.5)
    errors = [(minimized(A, 400, threshold=0.5, every=every) - best).norm() for every in (1, 2, 4, 8)]
    assert errors[0] < 1e-10
    assert errors == sorted(errors)
    assert errors[1] < 0.1
    assert 1.5 < errors[2] / errors[1] < 4  # three steps of smoothing instead of one


def test_a_kernel_is_one_matrix_and_other_parameters_are_left_to_sgd():
    kernel, bias = torch.nn.Parameter(randn(4, 2, 3, 3)), torch.nn.Parameter(randn(4))
    start = kernel.detach().clone(), bias.detach().clone()
    optimizer = ProximalSGD(
        [{"params": [kernel], "kind": "thresholded", "threshold": 10.0, "every": 2}, {"params": [bias]}], lr=0.1
    )
    for step in (1, 2):
        kernel.grad, bias.grad = torch.zeros_like(kernel), torch.ones_like(bias)
        optimizer.step()
        expected = start[0] if step == 1 else singular_value_threshold(start[0].flatten(1), 2.0).view(4, 2, 3, 3)
        torch.testing.assert_close(kernel.detach(), expected)
    torch.testing.assert_close(bias.detach(), start[1] - 0.2)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"kind": "thresholdde"}, "kind = 'thresholdde': unknown; did you mean 'thresholded'"),
        ({"threshold": -1.0}, "threshold = -1.0: must be >= 0"),
        ({"every": 0}, "every = 0: must be a whole number >= 1"),
        ({"kind": "thresholded"}, r"params = .a tensor of shape \(3,\).: must be matrices or kernels"),
        ({"lr": -0.1}, "lr = -0.1: must be >= 0"),
    ],
)
def test_bad_input(group, message):
    with pytest.raises(ValueError, match=message):
        ProximalSGD([{"params": [torch.nn.Parameter(randn(3))], **group}])
