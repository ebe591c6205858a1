"""Figures of the course: plain data in, a matplotlib ``Figure`` out.

Nothing here computes a statistic; intervals and shares come in ready made.
Colours are Okabe and Ito's, and no figure relies on colour alone. A model
has the same colour in every figure. Every figure can carry a provenance note
(:func:`recorded_on`) and is shown with alt text by
:func:`show` in a notebook or :func:`figure_data` in a page.
"""

from helpers.results.plots.charts import (
    plot_accuracy_grid,
    plot_curves,
    plot_ledger,
    plot_length_histogram,
    plot_outcomes,
)
from helpers.results.plots.diagrams import (
    COURSE_STEPS,
    plot_course_map,
    plot_paired,
)
from helpers.results.plots.evaluation import (
    plot_caps,
    plot_differences,
    plot_pass_at_k,
)
from helpers.results.plots.planning import plot_gantt, plot_memory_bar
from helpers.results.plots.style import (
    OKABE_ITO,
    figure_data,
    figure_png,
    model_colour,
    recorded_on,
    show,
)
from helpers.results.plots.training import (
    plot_dpo_curves,
    plot_dpo_sweep,
    plot_loss,
    plot_merge_fidelity,
)

__all__ = [
    "COURSE_STEPS",
    "OKABE_ITO",
    "figure_data",
    "figure_png",
    "model_colour",
    "plot_accuracy_grid",
    "plot_caps",
    "plot_course_map",
    "plot_curves",
    "plot_differences",
    "plot_dpo_curves",
    "plot_dpo_sweep",
    "plot_gantt",
    "plot_ledger",
    "plot_length_histogram",
    "plot_loss",
    "plot_memory_bar",
    "plot_merge_fidelity",
    "plot_outcomes",
    "plot_paired",
    "plot_pass_at_k",
    "recorded_on",
    "show",
]
