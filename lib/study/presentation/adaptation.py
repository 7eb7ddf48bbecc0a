"""Trained networks moved to another task: what each method reaches there, and what it forgets."""

from __future__ import annotations

import pandas as pd
from pandas.io.formats.style import Styler

from study.presentation import style
from study.statistics.comparison import mean_std

LABELS = {
    "before": "before",
    "full": "all weights",
    "lora": "LoRA",
    "adapter_inf": "U S Vᵀ",
    "adapter_10": "U S Vᵀ, κ(S) ≤ 10",
    "adapter_1.1": "U S Vᵀ, κ(S) ≤ 1.1",
}
"""The methods of the table "adaptation", in the order in which they are shown."""
COLUMNS = {
    "new_correct": "new task, %",
    "old_correct": "old task, %",
    "fgsm_correct": "new, under FGSM, %",
    "pgd_correct": "new, under PGD, %",
}


def adaptation_table(frame: pd.DataFrame) -> Styler:
    """Mean and standard deviation over the seeds; κ of the update, its median; the numbers trained."""
    rows = []
    for method, label in LABELS.items():
        of = frame[frame["method"] == method] if len(frame) else frame
        if of.empty:
            continue
        kappa, trained = of["kappa_update"].median(), of["n_trained"].median()
        rows.append(
            {
                "method": label,
                "numbers trained": "" if pd.isna(trained) else f"{trained:,.0f}",
                **{name: mean_std(100 * of[column] / of["n_test"], 1) for column, name in COLUMNS.items()},
                "κ of the update": "" if pd.isna(kappa) else style.number(kappa),
            }
        )
    return style.table(pd.DataFrame(rows))
