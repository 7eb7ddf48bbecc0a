"""What becomes of a trained network: adapted to another task by low-rank updates, and handed over to other programs."""

from wellcond.adaptation.adapters import AdaptedLayer, adapt, adapter_state, load_adapter, merge, save_adapter, unmerge
from wellcond.adaptation.export import FORMATS, export, load_factors, quantize

__all__ = [
    "FORMATS",
    "AdaptedLayer",
    "adapt",
    "adapter_state",
    "export",
    "load_adapter",
    "load_factors",
    "merge",
    "quantize",
    "save_adapter",
    "unmerge",
]
