"""How a trained network is made smaller: truncated, or pruned of filters or single weights, at any amount."""

from wellcond.compression.compressors import COMPRESSORS, Compressed, compress, reestimate_batch_norm

__all__ = ["COMPRESSORS", "Compressed", "compress", "reestimate_batch_norm"]
