"""study: the experiments on `wellcond`, and what is measured, compared and shown of them; what a chapter imports.

`load_or_run` gives a chapter the committed results, or computes them now; `python -m study run` fills them in.
"""

from study import paths
from study.attacks.registry import ATTACKS, frozen, perturb
from study.chapters import check_parameters, load_or_run
from study.data import DATASETS, Data, Images
from study.data import load as load_data
from study.experiments.cells import run_experiment
from study.experiments.progress import status
from study.experiments.published import load_network
from study.experiments.specification import Experiment
from study.experiments.tasks import assess
from study.measurement.accuracy import count_correct, robustness_curve
from study.measurement.conditioning import relative_condition
from study.networks import MODELS, Normalize, build
from study.results.store import Results
from study.training import distributed
from study.training.adversarial import Adversary
from study.training.ensemble import fit_together
from study.training.loop import Diverged, Recipe, fit

__all__ = [
    "ATTACKS",
    "DATASETS",
    "MODELS",
    "Adversary",
    "Data",
    "Diverged",
    "Experiment",
    "Images",
    "Normalize",
    "Recipe",
    "Results",
    "assess",
    "build",
    "check_parameters",
    "count_correct",
    "distributed",
    "fit",
    "fit_together",
    "frozen",
    "load_data",
    "load_network",
    "load_or_run",
    "paths",
    "perturb",
    "relative_condition",
    "robustness_curve",
    "run_experiment",
    "status",
]
