"""Relative condition number of a trained network, and the factors of the bound on it.

The relative condition number of f at a point x is the largest relative change of f(x) per relative change of x
(Trefethen and Bau, 1997, lecture 12),

    κ_rel(f; x) = ‖Df(x)‖₂ ‖x‖ / ‖f(x)‖,        κ_rel(g ∘ f; x) <= κ_rel(g; f(x)) κ_rel(f; x).

Here f maps pixels in [0, 1] to logits, and ‖x‖ is the norm of the pixels: `Normalize` is a layer of the model, so it is
part of f. For a chain of layers the second formula bounds κ_rel by a product over the layers:

    a linear layer z -> W z + b       κ(W) · 1/cos θ · ‖W z‖/‖W z + b‖,        W = P diag(σ₁ ... σ_r) Vᵀ,  σ_r > 0,
    an activation or normalization    max |φ'(y_i)| · ‖y‖/‖φ(y)‖,
    a max-pooling                     sqrt(the most windows that one entry wins) · ‖y‖/‖pool(y)‖,

where κ(W) = σ₁/σ_r, and cos θ = ‖Vᵀz‖/‖z‖ is the cosine of the angle between z and the row space of W. The angle
matters: for W = [1 0] and z = (d, 1), κ(W) = 1 and κ_rel = sqrt(1 + d²)/|d|. Full column rank makes cos θ = 1.

A convolution is W ∘ E: E cuts z into patches, the columns of Ez (m, positions), and W is the matricized kernel. EᵀE is
diagonal, its entries the numbers c_p of patches that hold pixel p, so ‖E‖₂² = max c_p and ‖Ez‖² = Σ c_p z_p², and

    κ_rel(conv; z) <= κ(W) · 1/cos θ · sqrt(max c_p) ‖z‖/‖Ez‖ · ‖W Ez‖/‖W Ez + b‖,        cos θ = ‖VᵀEz‖/‖Ez‖,

all norms Frobenius: one more factor, the patch factor, which is κ_rel(E; z). The singular values of the convolution
as an operator are not needed. Batch normalization after a layer is folded into it, D W for W. All is in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import grad
from torch.nn import functional as F

from study.data import Images
from study.networks import Normalize
from study.results.tables import AFTERWARDS, Table
from wellcond.diagnostics import Affine, affine_layers, in_double
from wellcond.errors import invalid
from wellcond.kinds.convolution import LowRankConv2d
from wellcond.layers import LowRankLayer, LowRankLinear, weight_layers
from wellcond.methods.tucker import Tucker2Conv2d
from wellcond.tracing import dataflow

CHUNK = 50  # points at a time; it changes the memory used, not the result

Step = Callable[[Tensor], Tensor]
CONVOLUTIONS = (nn.Conv2d, LowRankConv2d, Tucker2Conv2d)
LINEAR = ("kappa", "angle", "patch", "bias")  # the factors of a weight layer
KINDS: dict[Any, str] = {
    **dict.fromkeys((nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid), "activation"),
    **dict.fromkeys((F.relu, F.leaky_relu, F.elu, F.gelu, F.silu, F.tanh, F.sigmoid), "activation"),
    **dict.fromkeys((torch.relu, torch.tanh, torch.sigmoid, "relu", "tanh", "sigmoid"), "activation"),
    **dict.fromkeys((nn.MaxPool2d, F.max_pool2d), "pooling"),
    **dict.fromkeys((Normalize, nn.BatchNorm1d, nn.BatchNorm2d), "normalization"),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout2d), "identity"),
    **dict.fromkeys((nn.Flatten, torch.flatten, "flatten", "view", "reshape"), "identity"),
}
"""What a chain may consist of beside weight layers: modules, functions and tensor methods. An identity (in evaluation
mode, up to the shape) has no factor."""


@dataclass(frozen=True)
class Conditioning:
    """κ_rel at N points, and the factors of its bound; float64, on the processor.

    kappa_rel (N,). factors {(layer, quantity): (N,)}: kappa, angle (1/cos θ), patch (1 for a linear layer) and bias of
    each weight layer; activation, pooling and normalization go by the name of the weight layer before them, or by
    "input". gains {layer: (N,)}: ‖W‖₂ sqrt(max c_p) ‖z‖/‖W z + b‖, which the four factors of the layer bound in turn.
    Where a layer returns zero, κ_rel is not defined behind it, and its factors are inf or nan.
    """

    kappa_rel: Tensor
    factors: dict[tuple[str, str], Tensor]
    gains: dict[str, Tensor]

    @property
    def bound(self) -> Tensor:
        """The product of all factors (N,) >= gain_bound."""
        return _product(self.factors.values())

    @property
    def gain_bound(self) -> Tensor:
        """The product with each weight layer's gain in the place of its four factors (N,) >= kappa_rel."""
        others = [factor for (_, quantity), factor in self.factors.items() if quantity not in LINEAR]
        return _product([*self.gains.values(), *others])


@torch.enable_grad()
def relative_condition(model: nn.Module, x: Tensor) -> Conditioning:
    """κ_rel of a feed-forward network at points x (N, ...), pixels in [0, 1], and every factor of its bound.

    model: a chain of weight layers and KINDS, such as LeNet5 or VGG16. It is used in evaluation mode and left as it was
    found. Raises ValueError, naming what, if there is no point or the model is no such chain (a skip connection).
    """
    if not len(x):
        raise invalid("x", tuple(x.shape), "one point at least")
    model = in_double(model)
    steps = list(chain(model))
    parts = [_measure(model, steps, part) for part in _chunks(x)]
    return Conditioning(
        torch.cat([part.kappa_rel for part in parts]),
        {key: torch.cat([part.factors[key] for part in parts]) for key in parts[0].factors},
        {layer: torch.cat([part.gains[layer] for part in parts]) for layer in parts[0].gains},
    )


AFTERWARDS["conditioning"] = Table(
    {"run_id": str, "layer": str, "quantity": str, "value": float}, key=("run_id", "layer", "quantity")
)


def condition_rows(model: nn.Module, images: Images, n_images: int | None = 500) -> list[dict[str, Any]]:
    """Tidy rows (layer, quantity, value) of `relative_condition` at the first n_images (None: all).

    A layer's rows are its factors and its `gain`, as geometric means over the images: those of all factors multiply to
    that of the bound. Rows with layer "" are kappa_rel, gain_bound and bound (geometric means), kappa_rel_median,
    kappa_rel_q90, kappa_rel_max, images, and undefined: how many images are left out of the means and quantiles,
    because a layer returns zero. Raises ValueError as `relative_condition`.
    """
    chosen = images.first(n_images)
    found = relative_condition(model, chosen.images.double() / 255)
    defined = found.bound.isfinite() & found.kappa_rel.isfinite()
    quantities = {**found.factors, **{(layer, "gain"): gain for layer, gain in found.gains.items()}}
    quantities |= {("", name): getattr(found, name) for name in ("kappa_rel", "gain_bound", "bound")}
    rows = {key: values[defined].log().mean().exp().item() for key, values in quantities.items()}
    for name, q in (("median", 0.5), ("q90", 0.9), ("max", 1.0)):
        values = found.kappa_rel[defined]
        rows["", f"kappa_rel_{name}"] = values.quantile(q).item() if len(values) else math.nan
    rows["", "images"] = len(chosen)
    rows["", "undefined"] = int((~defined).sum())
    return [{"layer": layer, "quantity": quantity, "value": value} for (layer, quantity), value in rows.items()]


# --- what a step does to a point -------------------------------------------------------------------------------------


def _norm(z: Tensor) -> Tensor:
    """The norm of each point, (N, ...) -> (N,)."""
    return torch.linalg.vector_norm(z.flatten(1), dim=1)


def _product(factors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(factors)).prod(0)


class WeightStep:
    """A linear layer, with the batch normalization after it: z -> W z + b."""

    def __init__(self, layer: nn.Module, affine: Affine) -> None:
        self.layer, self.W, self.b, self.Vt, self.kappa = layer, affine.W, affine.b, affine.Vt, affine.kappa
        self.norm = affine.sigma[0] if len(affine.sigma) else affine.W.new_zeros(())

    def __call__(self, z: Tensor) -> Tensor:
        return self.multiply(self.W, z) + self.b

    def multiply(self, matrix: Tensor, z: Tensor) -> Tensor:
        """matrix (k, m) in the place of W."""
        return F.linear(z, matrix)

    def patches_per_pixel(self, z: Tensor) -> Tensor:
        """The numbers c, broadcast over z."""
        return z.new_ones(1)

    def factors(self, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The four factors and the gain, (N,) each, at inputs z (N, ...)."""
        linear, output, projected = _norm(self.multiply(self.W, z)), _norm(self(z)), _norm(self.multiply(self.Vt, z))
        counts = self.patches_per_pixel(z)
        patches = _norm(counts.sqrt() * z)
        patch = counts.max().sqrt() * _norm(z)
        values = (torch.full_like(output, self.kappa), patches / projected, patch / patches, linear / output)
        return dict(zip(LINEAR, values, strict=True)), self.norm * patch / output


class ConvolutionStep(WeightStep):
    """A convolution, applied to patches by torch's own kernels."""

    layer: nn.Conv2d | LowRankConv2d | Tucker2Conv2d

    def __call__(self, z: Tensor) -> Tensor:
        return self.multiply(self.W, z) + self.b[:, None, None]

    def multiply(self, matrix: Tensor, z: Tensor) -> Tensor:
        return self._convolve(matrix.reshape(len(matrix), -1, *self.layer.kernel_size), z)

    def patches_per_pixel(self, z: Tensor) -> Tensor:
        # the derivative of the sum over all patches: (H, W), the same for every channel
        kernel, image = z.new_ones(1, 1, *self.layer.kernel_size), z.new_ones(1, 1, *z.shape[2:])
        image.requires_grad_()
        (counts,) = grad(self._convolve(kernel, image).sum(), image)
        return counts[0, 0]

    def _convolve(self, kernel: Tensor, z: Tensor) -> Tensor:
        layer = self.layer
        return F.conv2d(z, kernel, stride=layer.stride, padding=layer.padding, dilation=layer.dilation)


def _weight_steps(model: nn.Module) -> dict[str, WeightStep]:
    """By name, with the batch normalization after the layer."""
    layers = weight_layers(model)
    return {
        name: (ConvolutionStep if isinstance(layers[name], CONVOLUTIONS) else WeightStep)(layers[name], affine)
        for name, affine in affine_layers(model).items()
    }


def _nonlinear(kind: str, step: Step, y: Tensor) -> tuple[Tensor, Tensor]:
    """φ(y), and the factor ‖Dφ(y)‖₂ ‖y‖/‖φ(y)‖ (N,)."""
    y = y.detach().requires_grad_()
    output = step(y.clone())  # it may act in place
    # The column sums of Dφ. Elementwise: its diagonal. Pooling selects entries: the diagonal of DφᵀDφ.
    (slopes,) = grad(output.sum(), y)
    y, output = y.detach(), output.detach()
    largest = slopes.flatten(1).abs().amax(1)
    return output, (largest.sqrt() if kind == "pooling" else largest) * _norm(y) / _norm(output)


def _from_jacobian(model: nn.Module, x: Tensor) -> Tensor:
    x = x.requires_grad_()
    logits = model(x)
    if logits.ndim != 2 or len(logits) != len(x):
        raise invalid("output", tuple(logits.shape), f"one row of logits for each of {len(x)} points")
    # A point changes its own row only, so the sum of a column has the gradients of all points side by side.
    gradients = [grad(column.sum(), x, retain_graph=True)[0].flatten(1) for column in logits.T]
    x, logits = x.detach(), logits.detach()
    largest = torch.linalg.matrix_norm(torch.stack(gradients, 1), ord=2)
    number: Tensor = largest * _norm(x) / _norm(logits)
    return number.cpu()


# --- the chain -------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LowRankLayer | Normalize) or super().is_leaf_module(m, module_qualified_name)


def _chunks(x: Tensor) -> Iterator[Tensor]:
    return (x[start : start + CHUNK].detach().double() for start in range(0, len(x), CHUNK))


def chain(model: nn.Module) -> Iterator[tuple[str, str, Step]]:
    """The steps of a float64 model in the order of execution: (the weight layer it goes by, its kind, the step).

    The code is traced: networks call their activations as functions, where no hook would see them.
    """

    def refused(why: str) -> ValueError:
        return invalid("model", type(model).__name__, f"a chain of layers; {why}")

    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever the code raises when it is given a placeholder
        raise refused(f"torch.fx cannot trace it: {type(error).__name__}") from error
    weights, folded = _weight_steps(model), dataflow(model).normalized.values()
    before, *nodes = graph.nodes
    layer = "input"
    for node in nodes:
        if len(before.users) != 1:
            raise refused(f"{before.name} is read by {', '.join(user.name for user in before.users) or 'nothing'}")
        if node.all_input_nodes != [before]:
            raise refused(f"{node.name} does not read {before.name} alone")
        before = node
        if node.op == "output" or (node.op == "call_module" and node.target in folded):
            continue
        part = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(part) in (nn.Linear, nn.Conv2d, LowRankLinear, LowRankConv2d, Tucker2Conv2d):
            if getattr(part, "groups", 1) != 1 or getattr(part, "padding_mode", "zeros") != "zeros":
                raise refused(f"{node.target} has groups, or padding other than zeros")
            layer = str(node.target)
            yield layer, "linear", weights[layer]
            continue
        kind = KINDS.get(node.target if part is None else type(part))
        if kind is None or getattr(part, "running_mean", 0) is None:
            raise refused(f"{node.name if part is None else type(part).__name__} has no known factor")
        yield layer, kind, _call(node, part)


def _call(node: fx.Node, part: nn.Module | None) -> Step:
    """A node of the graph as a function of its only input."""
    target: Any = part if node.op == "call_module" else node.target
    function = getattr(Tensor, target) if node.op == "call_method" else target

    def call(z: Tensor) -> Tensor:
        first, *rest = fx.map_arg(node.args, lambda _: z)
        return function(first, *rest, **node.kwargs)

    return call


def _measure(model: nn.Module, steps: Iterable[tuple[str, str, Step]], x: Tensor) -> Conditioning:
    factors: dict[tuple[str, str], Tensor] = {}
    gains: dict[str, Tensor] = {}
    z = x
    for layer, kind, step in steps:
        found: dict[str, Tensor] = {}
        if isinstance(step, WeightStep):
            found, gain = step.factors(z)
            gains[layer] = gain * gains.get(layer, 1)
            z = step(z)
        elif kind == "identity":
            z = step(z)
        else:
            z, found[kind] = _nonlinear(kind, step, z)
        for quantity, factor in found.items():  # a layer may be followed by two activations, or be called twice
            factors[layer, quantity] = factor * factors.get((layer, quantity), 1)
    return Conditioning(
        _from_jacobian(model, x),
        {key: factor.cpu() for key, factor in factors.items()},
        {layer: gain.cpu() for layer, gain in gains.items()},
    )
