"""Networks of other people, factorized: how much of each is low rank; whether function, constraint and way back hold.

Each is tried at full rank (the same function), for STEPS steps of training at a ratio (the constraint), deployed and
made dense again (the same function). A network whose package is not installed is left out.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import wellcond as wc
from wellcond.tracing import evaluate

STEPS, MAX_COND, LR = 5, 1.1, 1e-3
Network = tuple[nn.Module, Any]
"""A model, and an input: a tensor, or a mapping of arguments."""


def _torchvision(name: str, size: int = 64, **options: Any) -> Callable[[], Network]:
    def made() -> Network:
        from torchvision import models

        return models.get_model(name, weights=None, **options), torch.rand(2, 3, size, size)

    return made


def _timm(name: str, size: int = 224) -> Callable[[], Network]:
    def made() -> Network:
        import timm

        return timm.create_model(name), torch.rand(2, 3, size, size)

    return made


def _transformer(name: str, **configuration: Any) -> Callable[[], Network]:
    def made() -> Network:
        import transformers

        kind = getattr(transformers, name)
        model = kind(kind.config_class(vocab_size=500, **configuration))
        return model, {"input_ids": torch.randint(500, (2, 12))}

    return made


class GPT(nn.Module):
    """A decoder whose classifier is its embedding, transposed: tied weights."""

    def __init__(self, words: int = 200, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, index: Tensor) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(index.shape[1])
        return self.head(self.blocks(self.embedding(index), mask=mask, is_causal=True))


class UNet(nn.Module):
    """One level down and up again, with the way past it."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.outer = nn.Conv2d(2 * width, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = self.inner(x)
        return self.outer(torch.cat([x, self.up(self.down(x))], dim=1))


class Recurrent(nn.Module):
    """Two layers of LSTM over embedded words."""

    def __init__(self, words: int = 200, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, index: Tensor) -> Any:
        return self.head(self.lstm(self.embedding(index))[0][:, -1])


def _words() -> Tensor:
    return torch.randint(200, (2, 12))


def _in_dimensions(convolution: type[Any], norm: type[Any], shape: tuple[int, ...]) -> Callable[[], Network]:
    def made() -> Network:
        layers = [convolution(3, 16, 3, padding=1), norm(16), nn.ReLU(), convolution(16, 32, 3, stride=2, groups=4)]
        return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)), torch.rand(2, 3, *shape)

    return made


BERT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
ARCHITECTURES: dict[str, Callable[[], Network]] = {
    "resnet18": _torchvision("resnet18"),
    "resnet50": _torchvision("resnet50"),
    "resnext50": _torchvision("resnext50_32x4d"),
    "densenet121": _torchvision("densenet121"),
    "mobilenet_v3": _torchvision("mobilenet_v3_small"),
    "efficientnet_b0": _torchvision("efficientnet_b0"),
    "convnext_tiny": _torchvision("convnext_tiny"),
    "vit_b_16": _torchvision("vit_b_16", image_size=64),
    "swin_t": _torchvision("swin_t"),
    "googlenet": _torchvision("googlenet", init_weights=False, aux_logits=False),
    "timm ViT": _timm("vit_tiny_patch16_224"),
    "timm MLP-Mixer": _timm("mixer_s32_224"),
    "timm NF-ResNet": _timm("nf_resnet26", 64),
    "BERT": _transformer("BertForSequenceClassification", **BERT),
    "GPT-2": _transformer("GPT2LMHeadModel", n_embd=64, n_layer=2, n_head=4),
    "Llama": _transformer("LlamaForCausalLM", **BERT),
    "U-Net": lambda: (UNet(), torch.rand(2, 3, 16, 16)),
    "GPT, tied": lambda: (GPT(), _words()),
    "LSTM": lambda: (Recurrent(), _words()),
    "convolutions 1d": _in_dimensions(nn.Conv1d, nn.BatchNorm1d, (32,)),
    "convolutions 3d": _in_dimensions(nn.Conv3d, nn.BatchNorm3d, (8, 8, 8)),
}
"""The networks by name: each function makes one, with random weights, and an input."""


def answer(model: nn.Module, x: Any) -> Tensor:
    """The first tensor of floating-point numbers that the network returns."""

    def tensors(y: Any) -> Iterator[Tensor]:
        if isinstance(y, Tensor):
            yield y
        elif isinstance(y, Mapping | tuple | list):
            for part in y.values() if isinstance(y, Mapping) else y:
                yield from tensors(part)

    return next(part for part in tensors(evaluate(model, x)) if part.is_floating_point())


@torch.no_grad()
def settle(model: nn.Module, x: Any) -> nn.Module:
    """Have batch normalization take its statistics from this input, and draw the weights that start at zero; in
    evaluation mode at the end. A network as it is made may return its last bias, whatever it is given."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.5  # a variance of few numbers may be next to nothing: half of it is the first one, 1
    answer(model.train(), x)
    for p in model.parameters():
        if p.ndim > 1 and not p.any():
            nn.init.normal_(p, std=0.02)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def _difference(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).detach().norm() / expected.detach().norm())


def tried(model: nn.Module, x: Any, ratio: float) -> dict[str, Any]:
    """What became of one network. Differences of outputs are relative to their norm."""
    model = model.eval()
    with torch.no_grad():
        expected = answer(model, x)
        same = _difference(answer(wc.factorize(model, ratio=0), x), expected)
    small = wc.constrain(wc.factorize(model, ratio=ratio), MAX_COND)
    start = copy.deepcopy(small.state_dict())
    optimizer = wc.LowRankSGD(wc.param_groups(small, max_cond=MAX_COND), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        answer(small, x).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    reports = wc.layer_reports(small)
    constrained = [reports[name] for name in wc.low_rank_layers(small)]
    with torch.no_grad():
        trained = answer(small, x)
        deployed = _difference(answer(wc.deploy(small, x), x), trained)
        dense = wc.densify(small)
        again = _difference(answer(dense, x), trained)
    matrices = sum(p.numel() for p in model.parameters() if p.squeeze().ndim > 1)
    count = wc.count_parameters(small)
    return {
        "matrices": len(constrained),
        "left_dense": 1 - sum(layer.n_dense for layer in wc.low_rank_layers(small).values()) / matrices,
        "dense_parameters": count.dense,
        "deployed_parameters": count.deployed,
        "full_rank_difference": same,
        "max_kappa": max(report.kappa for report in constrained),
        "max_orthogonality": max(report.orthogonality for report in constrained),
        "moved": sum(not torch.equal(value, start[key]) for key, value in small.state_dict().items()) / len(start),
        "deploy_difference": deployed,
        "densify_difference": again,
        "same_keys_and_types": dense.state_dict().keys() == model.state_dict().keys()
        and [type(m) for m in dense.modules()] == [type(m) for m in model.modules()],
    }


def architecture_rows(*, repeats: int = 0, device: str = "cpu", ratio: float = 0.8) -> list[dict[str, Any]]:
    """A row for each of ARCHITECTURES whose package is installed. repeats: not used."""
    rows = []
    for name, made in ARCHITECTURES.items():
        torch.manual_seed(0)
        try:
            model, x = made()
        except ImportError:
            continue
        settle(model, x)  # lazy layers find their sizes, too
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what stays dense, which the row counts
            rows.append({"architecture": name, "ratio": ratio, **tried(model.to(device), x, ratio)})
    return rows
