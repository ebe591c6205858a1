"""results"""

from helpers.results.caps import measure_caps, split_change
from helpers.results.ledger import price_idle_cards, recompute_math_slm
from helpers.results.outcomes import summarize_results
from helpers.results.plots.style import new_figure, set_title
from helpers.results.published import load_published
from helpers.results.report import Results, read_results, write_report
from helpers.results.sampled import pass_at_k, pass_curve, summarize_samples
from helpers.results.scores import (
    choose_benchmarks,
    load_results,
    load_samples,
    measure_benchmark,
    result_name,
    stage_name,
)
from helpers.results.stats import (
    WORDS,
    Comparison,
    Interval,
    Proportion,
    bootstrap_mean,
    compare,
    compare_counts,
    format_p,
    holm,
    judge_claim,
    macro_compare,
    mcnemar_p,
    n_needed,
    n_needed_paired,
    newcombe_difference,
    proportion,
    require_k,
    say_selection,
)
from helpers.results.verdicts import (
    FileChange,
    keep_copy,
    regrade_command,
    regrade_file,
    renew_file,
    say_old_grades,
)

__all__ = [
    "WORDS",
    "Comparison",
    "FileChange",
    "Interval",
    "Proportion",
    "Results",
    "bootstrap_mean",
    "choose_benchmarks",
    "compare",
    "compare_counts",
    "format_p",
    "holm",
    "judge_claim",
    "keep_copy",
    "load_published",
    "load_results",
    "load_samples",
    "macro_compare",
    "mcnemar_p",
    "measure_benchmark",
    "measure_caps",
    "n_needed",
    "n_needed_paired",
    "new_figure",
    "newcombe_difference",
    "pass_at_k",
    "pass_curve",
    "price_idle_cards",
    "proportion",
    "read_results",
    "recompute_math_slm",
    "regrade_command",
    "regrade_file",
    "renew_file",
    "require_k",
    "result_name",
    "say_old_grades",
    "say_selection",
    "set_title",
    "split_change",
    "stage_name",
    "summarize_results",
    "summarize_samples",
    "write_report",
]
