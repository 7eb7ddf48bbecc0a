"""Kinds of layers beside the linear one: what the matrix of each is, and how its factors act.

A file adds a layer by `register_kind`, or, where forward code reads bare matrices, by `opening.register_matrices`.
"""

from wellcond.kinds import attention, convolution, embedding, recurrent, transformers, transposed

__all__ = ["attention", "convolution", "embedding", "recurrent", "transformers", "transposed"]
