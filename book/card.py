"""The picture that a message with a link to the book shows: its title over the comparison of the start page."""

from __future__ import annotations

from pathlib import Path

import study
from study.presentation import frontier

SIZE = (1200, 630)  # pixels, what most services show whole
DPI = 160


def draw(title: str, path: Path) -> None:
    """Into a PNG file, from the committed results."""
    with study.paths.only_committed():
        figure = frontier.plot_frontier(study.load_or_run("mnist_lenet5"), "pgd_linf", 0.1, frontier.MNIST)
    figure.set_size_inches(*(pixels / DPI for pixels in SIZE))
    figure.suptitle(title, fontsize=19, fontweight="bold")
    figure.savefig(path, dpi=DPI)
