"""Related systems: the table of their claims, and a figure each. Never imports torch.

Frames are those of `study.theory.related.load`.
"""

from study.presentation.related.claims import SYSTEMS, claims_table, value_text
from study.presentation.related.convex_landscape import plot_landscape
from study.presentation.related.federated import plot_federated
from study.presentation.related.kernel_pooling import plot_pooling
from study.presentation.related.large_batches import plot_batches
from study.presentation.related.orthogonal_flow import plot_gradients
from study.presentation.related.rewiring import plot_rewiring
from study.presentation.related.surf import plot_surf
from study.presentation.related.undertraining import plot_undertraining
from study.presentation.related.unrolled import plot_unrolled

__all__ = [
    "SYSTEMS",
    "claims_table",
    "plot_batches",
    "plot_federated",
    "plot_gradients",
    "plot_landscape",
    "plot_pooling",
    "plot_rewiring",
    "plot_surf",
    "plot_undertraining",
    "plot_unrolled",
    "value_text",
]
