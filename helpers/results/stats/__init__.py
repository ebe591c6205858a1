"""Is the gain real?  Thin, typed wrappers over statsmodels and scipy.

Every score is a :class:`Proportion` and prints as
``k/n (p %, 95 % CI a–b)``. Two models on the same problems are compared
*paired* (:func:`compare`): what counts are the problems that only one of
them solves. Published figures without per-problem results can only be
compared unpaired (:func:`newcombe_difference`, :func:`z_test_p`,
:func:`fisher_p`) and bounded (:func:`paired_bound`); :func:`judge_claim`
does all of it. A mean over problems or over benchmarks has a bootstrap
interval (:func:`bootstrap_mean`, :func:`macro_compare`).

Shares and differences are fractions (0.054, not 5.4); the texts show them in
percent and in percentage points. The level is 95 % everywhere.
"""

from helpers.results.stats.claims import (
    WORDS,
    Claim,
    judge_claim,
    say_selection,
)
from helpers.results.stats.paired import (
    Comparison,
    PairedBound,
    compare,
    compare_counts,
    mcnemar_p,
    paired_bound,
    tango_interval,
)
from helpers.results.stats.resampled import (
    Interval,
    MacroComparison,
    bootstrap_mean,
    macro_compare,
)
from helpers.results.stats.scores import (
    ALPHA,
    LEVEL,
    NOISE,
    Difference,
    Proportion,
    best_of,
    estimate_pass_at_k,
    fisher_p,
    format_p,
    format_points,
    holm,
    n_needed,
    n_needed_paired,
    newcombe_difference,
    proportion,
    require_k,
    z_test_p,
)

__all__ = [
    "ALPHA",
    "LEVEL",
    "NOISE",
    "WORDS",
    "Claim",
    "Comparison",
    "Difference",
    "Interval",
    "MacroComparison",
    "PairedBound",
    "Proportion",
    "best_of",
    "bootstrap_mean",
    "compare",
    "compare_counts",
    "estimate_pass_at_k",
    "fisher_p",
    "format_p",
    "format_points",
    "holm",
    "judge_claim",
    "macro_compare",
    "mcnemar_p",
    "n_needed",
    "n_needed_paired",
    "newcombe_difference",
    "paired_bound",
    "proportion",
    "require_k",
    "say_selection",
    "tango_interval",
    "z_test_p",
]
