"""How a trained network is made smaller: truncated, or pruned of filters or single weights, at any amount."""

from wellcond.compression.batch_norm import reestimate_batch_norm
from wellcond.compression.compressors import COMPRESSORS, compress, iterated
from wellcond.compression.units import Compressed
from wellcond.compression.weights import held_zeros

__all__ = ["COMPRESSORS", "Compressed", "compress", "held_zeros", "iterated", "reestimate_batch_norm"]
