"""nn.MultiheadAttention: the projection of queries, keys and values (3E, E), one matrix or three as torch keeps them,
and the output projection (E, E)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from wellcond.kinds.opening import Opened, register_matrices
from wellcond.layers import LowRankLinear, register_kind


class LowRankOutputProjection(LowRankLinear):
    """A linear layer whose dense form is the one that nn.MultiheadAttention has."""

    dense = NonDynamicallyQuantizableLinear


class OpenedAttention(Opened):
    """Self-attention that asks for no weights calls its two layers, so that their factors act; all else is the code of
    torch, for which the matrices are formed."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        own: Any = self
        plain = own.bias_k is None and own.bias_v is None and not own.add_zero_attn and "in_proj" in own._modules
        if (
            key is query
            and value is query
            and plain
            and not need_weights
            and key_padding_mask is None
            and _shared(attn_mask)
            and not (is_causal and attn_mask is None)  # which torch refuses
        ):
            return self._self_attention(query, attn_mask), None
        options = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        y: tuple[Tensor, Tensor | None] = super().forward(query, key, value, *options)  # type: ignore[misc]
        return y

    def _self_attention(self, x: Tensor, mask: Tensor | None) -> Any:
        """x (B, T, E), or (T, B, E) unless batch_first, or (T, E)."""
        own: Any = self
        qkv = own.in_proj(x if own.batch_first else x.movedim(0, -2))
        if own.in_proj_bias is not None:
            qkv = qkv + own.in_proj_bias
        heads = qkv.unflatten(-1, (3, own.num_heads, own.head_dim)).movedim(-3, 0).transpose(-3, -2)
        if mask is not None and mask.dtype == torch.bool:
            mask = ~mask  # there True means hidden, here seen
        dropout = own.dropout if own.training else 0.0
        q, k, v = heads.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        y = own.out_proj(y.transpose(-3, -2).flatten(-2))
        return y if own.batch_first else y.movedim(-2, 0)


def _shared(mask: Tensor | None) -> bool:
    """Whether all examples and heads have one mask (T, T), or none."""
    return mask is None or mask.ndim == 2


def _matrices(attention: nn.MultiheadAttention) -> dict[str, str]:
    names = ("in_proj", "q_proj", "k_proj", "v_proj")
    return {name: f"{name}_weight" for name in names}


register_kind(NonDynamicallyQuantizableLinear, LowRankOutputProjection)
register_matrices(nn.MultiheadAttention, _matrices, OpenedAttention)
