"""Dense weights, two factors, the truncated SVD of a trained network, and spectral normalization: what others are
measured against."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from wellcond.methods.method import (
    Method,
    decayed,
    dense,
    factors,
    plain_groups,
    register,
    single_matrices,
    trained_layers,
)
from wellcond.methods.settings import Settings


def _spectrally_normalized(model: nn.Module, settings: Settings) -> nn.Module:
    layers = trained_layers(decayed(model, settings))
    single_matrices(layers)  # raises for a stack, whose norms are not that of the kernel
    for layer in layers.values():
        spectral_norm(layer, dim=0)  # by itself torch takes another matrix of a transposed convolution
    return model


register(Method("dense", "dense SGD", "Dense weights, momentum SGD.", dense, plain_groups))

register(
    Method("uv", "U Vᵀ", "Two factors, trained by plain momentum SGD.", factors, plain_groups, frozenset({"ratio"}))
)

register(
    Method(
        "svd",
        "SVD of dense",
        "Truncated SVD of the trained dense network, no further training.",
        factors,
        plain_groups,
        frozenset({"ratio"}),
        starts_from="dense",
        trains=False,
    )
)

register(
    Method(
        "svd_finetuned",
        "SVD of dense, fine-tuned",
        "Truncated SVD of the trained dense network, then U Vᵀ trained on.",
        factors,
        plain_groups,
        frozenset({"ratio"}),
        starts_from="dense",
    )
)

register(
    Method(
        "spectral_norm",
        "dense, spectral norm 1",
        "Dense weights divided by their spectral norms, by power iteration.",
        _spectrally_normalized,
        plain_groups,
    )
)
