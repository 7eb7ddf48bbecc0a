"""Embeddings: row i of W = U S Vᵀ (vocabulary, width) is U_i S Vᵀ; rows of U are looked up, W is not formed."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from wellcond.layers import LowRankLayer, filled, in_sequence, register_kind, restored, stored


class LowRankEmbedding(LowRankLayer):
    """y = W[i] with W = U S Vᵀ, as nn.Embedding.

    Shape: integers (...) -> (..., embedding_dim). A row of zeros at padding_idx, as `from_dense` has it and a layer at
    its own start has not, stays one. Raises ValueError if rank is not in 1..min(num_embeddings, embedding_dim).
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, rank: int, *, padding_idx: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, rank, bias=False, **kwargs)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx

    def forward(self, index: Tensor) -> Tensor:
        z = F.embedding(index, self.U, self.padding_idx)
        return (z if self.S is None else z @ self.S) @ self.V.mT

    @classmethod
    def refuses(cls, layer: nn.Embedding) -> str:
        plain = layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
        return "" if plain else "an embedding with max_norm, scale_grad_by_freq or sparse"

    @classmethod
    def from_dense(cls, layer: nn.Embedding, rank: int, *, core: bool = True) -> Self:
        """The best rank-r approximation of the table of `layer`."""
        shape = (layer.num_embeddings, layer.embedding_dim)
        return filled(cls(*shape, rank, padding_idx=layer.padding_idx, core=core, **stored(layer)), layer)

    def to_dense(self) -> nn.Embedding:
        """An nn.Embedding with the table U S Vᵀ."""
        shape = (self.num_embeddings, self.embedding_dim)
        return restored(nn.Embedding(*shape, padding_idx=self.padding_idx, **stored(self)), self)

    def plain_layers(self) -> nn.Sequential:
        """The table U S, then Vᵀ as a linear layer."""
        like = stored(self)
        first = nn.Embedding(self.num_embeddings, self.rank, padding_idx=self.padding_idx, **like)
        last = nn.Linear(self.rank, self.embedding_dim, bias=False, **like)
        attributes = ("num_embeddings", "embedding_dim", "padding_idx")
        return in_sequence(self, {first: self.left(), last: self.V}, attributes)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self._describe()}"


register_kind(nn.Embedding, LowRankEmbedding)
