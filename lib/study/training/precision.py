"""Products in bfloat16, on any machine.

A processor without instructions for bfloat16 takes twenty times as long for a convolution in it as in float32. There
the operands and the result of each product are rounded to bfloat16, and the product is taken in float32, which is what
the instructions do: bfloat16 operands, float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

FORMATS: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16}
"""The formats of products in training, by name."""
PRODUCTS = frozenset(
    {
        *(torch.conv1d, torch.conv2d, torch.conv3d, F.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm),
        *(Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm),
    }
)


class _Rounded(torch.autograd.Function):
    """x rounded to a format, in the type of x; and so is the gradient that comes back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, torch.dtype], output: Tensor) -> None:
        ctx.format = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.format).to(gradient.dtype), None


class RoundedProducts(TorchFunctionMode):
    """While it is open, products of float32 numbers are those of `dtype` with sums in float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map(self._rounded, (args, kwargs or {}))
        return self._rounded(func(*args, **kwargs))

    def _rounded(self, x: Any) -> Any:
        single = isinstance(x, Tensor) and x.dtype == torch.float32
        return _Rounded.apply(x, self.dtype) if single else x


def native(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the device has instructions for products in this format."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def products_in(name: str, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which products are taken in a format of FORMATS: torch's autocast, or its arithmetic by rounding."""
    dtype = FORMATS[name]
    return torch.autocast(device.type, dtype) if native(device, dtype) else RoundedProducts(dtype)
