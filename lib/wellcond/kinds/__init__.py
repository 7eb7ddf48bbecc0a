"""Kinds of layers beside linear layers and convolutions: what the matrix of each is, and how its factors act.

A file adds a layer by `register_kind`, or, where forward code reads bare matrices, by `register_matrices`.
"""

from wellcond.kinds import attention, embedding, recurrent, transformers, transposed

__all__ = ["attention", "embedding", "recurrent", "transformers", "transposed"]
