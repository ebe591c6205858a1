"""Several samples a problem: what k of them give, from the n that are there.

Pure arithmetic on counts; ``helpers.many`` counts the stored samples.
"""

from __future__ import annotations

from helpers.base import LabError


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of ``k`` samples of a problem is right.

    Unbiased, from ``n`` samples of which ``c`` are right: one minus the
    chance that ``k`` of them, drawn without putting back, are all wrong.
    ``k`` = 1 is the share of right samples.

    Raises:
        LabError: counts that cannot be, or k larger than the samples kept.

    Source: Chen et al., "Evaluating Large Language Models Trained on Code",
    arXiv 2107.03374, equation 1, as scipy's hypergeometric distribution.
    """
    from scipy.stats import hypergeom

    require_k(k, n)
    if not 0 <= c <= n:
        raise LabError(
            f"{c} right of {n} samples cannot be.",
            why="pass@k needs 0 to n right samples",
        )
    return float(1 - hypergeom.pmf(0, n, c, k))


def require_k(k: int, n: int) -> None:
    """Refuse a k that the n samples kept of a problem cannot show.

    Raises:
        LabError: k below 1, no whole number, or larger than n.
    """
    if k != int(k) or k < 1:
        raise LabError(
            f"k = {k} is not a number of samples.",
            fix="choose a whole number of at least 1",
        )
    if k > n:
        raise LabError(
            f"k = {k}, but only {n} samples of each problem are kept.",
            why="what more samples would bring cannot be known from fewer",
            fix=f"choose k of at most {n}, or draw more: mathslm evaluate "
            f"--set evaluate.n={k} --set evaluate.temperature=1",
        )
