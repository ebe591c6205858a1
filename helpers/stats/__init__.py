"""Is the gain real?  Thin, typed wrappers over statsmodels and scipy.

Every score is a :class:`Proportion` and prints as
``k/n (p %, 95 % CI a–b)``. Two models on the same problems are compared
*paired* (:func:`compare`): what counts are the problems that only one of
them solves. Published figures without per-problem results can only be
compared unpaired (:func:`newcombe_difference`, :func:`z_test_p`,
:func:`fisher_p`) and bounded (:func:`paired_bound`).

Shares and differences are fractions (0.054, not 5.4); the texts show them in
percent and in percentage points. The level is 95 % everywhere.
"""

from helpers.stats.paired import (
    Comparison,
    PairedBound,
    compare,
    compare_counts,
    macro_compare,
    macro_difference,
    mcnemar_p,
    paired_bound,
    tango_interval,
)
from helpers.stats.scores import (
    ALPHA,
    LEVEL,
    Difference,
    Proportion,
    best_of,
    fisher_p,
    format_p,
    format_points,
    holm,
    n_needed,
    n_needed_paired,
    newcombe_difference,
    proportion,
    z_test_p,
)

__all__ = [
    "ALPHA",
    "LEVEL",
    "Comparison",
    "Difference",
    "PairedBound",
    "Proportion",
    "best_of",
    "compare",
    "compare_counts",
    "fisher_p",
    "format_p",
    "format_points",
    "holm",
    "macro_compare",
    "macro_difference",
    "mcnemar_p",
    "n_needed",
    "n_needed_paired",
    "newcombe_difference",
    "paired_bound",
    "proportion",
    "tango_interval",
    "z_test_p",
]
