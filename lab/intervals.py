"""How sure a figure is: shares of right answers beside guessing, means and sums whose parts are drawn anew.

    summary([1, 0, 0.5, 1], chances=[0.5] * 4)     # {"accuracy": 0.625, "interval": [0.22, 0.91], ...}
    bootstrap_mean([0.2, 0.5, 0.4])                # {"mean": 0.37, "low": 0.18, "high": 0.49}

Intervals are for 95 % where no level is given, and take what is counted as independent draws.
"""

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations


def summary(outcomes: Sequence[float], chances: Sequence[float]) -> dict:
    """What `outcomes` (1 right, 0 wrong, between them for a tie) come to, beside guessing.

    chances: the probability with which a guess would be right, for each of them.
    Returns: accuracy, its Wilson interval, the count, chance (the mean of `chances`), and the interval in which the
    accuracy of somebody who guesses lies on as many questions.
    """
    return {
        "accuracy": sum(outcomes) / len(outcomes),
        "interval": wilson(sum(outcomes), len(outcomes)),
        "count": len(outcomes),
        "chance": sum(chances) / len(chances),
        "chance_interval": chance_interval(chances),
    }


def wilson(right: float, count: int) -> list[float]:
    """[low, high] for the true share, where `right` of `count` were seen; never outside 0 to 1, also near its ends.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953. Ties make `right` fractional, which widens
    nothing: with many ties the interval is wider than it need be.
    """
    share, weight = right / count, Z * Z / count
    middle = (share + weight / 2) / (1 + weight)
    half = Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return [min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))]  # rounding must not shut it out


def chance_interval(chances: Sequence[float]) -> list[float]:
    """[low, high] for the accuracy of guessing: normal approximation to a sum of independent draws."""
    mean = sum(chances) / len(chances)
    half = Z * math.sqrt(sum(p * (1 - p) for p in chances)) / len(chances)
    return [max(0.0, mean - half), min(1.0, mean + half)]


def mean_of_groups(groups: Sequence[dict]) -> dict:
    """The mean of groups' accuracies, each counting the same, from their summaries.

    Its interval is that of a stratified sample, mean ± Z * sqrt(sum of p (1 - p) / n) / groups, where Z²/2 right and as
    many wrong answers are added to each group, so that one without a mistake does not pass for certain (Agresti & Coull
    1998, doi 10.1080/00031305.1998.10480550).
    """
    mean = sum(group["accuracy"] for group in groups) / len(groups)
    variance = 0.0
    for group in groups:
        count = group["count"] + Z * Z
        share = (group["accuracy"] * group["count"] + Z * Z / 2) / count
        variance += share * (1 - share) / count
    half = Z * math.sqrt(variance) / len(groups)
    return {"accuracy": mean, "interval": [max(0.0, mean - half), min(1.0, mean + half)], "groups": len(groups)}


def mean_difference(a: Sequence[float], b: Sequence[float]) -> dict:
    """The mean of a[i] - b[i] with its 95 % interval (normal approximation), and the count."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(differences) / len(differences)
    variance = sum((own - mean) ** 2 for own in differences) / max(1, len(differences) - 1)
    half = Z * math.sqrt(variance / len(differences))
    return {"difference": mean, "interval": [mean - half, mean + half], "count": len(differences)}


# ---------------------------------------------------------------- drawing anew (bootstrap), few runs


def draw_documents(count: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of `count` documents is drawn in each resample: (resamples, count) float32, rows sum to count.

    Raises: ValueError for fewer than two, whose spread nobody can see.
    """
    if count < 2:
        raise ValueError(f"documents={count} must be at least 2, or nothing can be said about their spread")
    return np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples).astype(np.float32)


def symmetric_width(deviations: np.ndarray, level: float) -> float:
    """What a share `level` of the deviations stays within; nan ones are left out."""
    return np.nanquantile(np.abs(deviations), level)


def widen(n: int) -> float:
    """A bootstrap of n things shows their spread around their own mean, too small by sqrt((n - 1) / n)."""
    return math.sqrt(n / (n - 1))


def t_quantile(level: float, freedom: float) -> float:
    """The t with P(|T| <= t) = level for Student's T with that many degrees of freedom, a whole number or not.

    With T = sqrt(freedom) tan(u), the density of u is cos(u)^(freedom - 1), which is summed on a fine grid.
    """
    freedom = max(freedom, 1.0)
    u = np.linspace(0, math.pi / 2, 20_001)
    middles = np.cos((u[1:] + u[:-1]) / 2) ** (freedom - 1)
    share = np.concatenate([[0.0], np.cumsum(middles)]) / middles.sum()
    return math.sqrt(freedom) * math.tan(np.interp(level, share, u))


def bootstrap_mean(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, float] | None:
    """{"mean", "low", "high"}: the mean with the interval that drawing the values anew gives (percentile bootstrap).

    nan values are left out; None if fewer than two are left. Deviations are widened by sqrt(n / (n - 1)), because the
    values vary less around their own mean than around the true one. Source: Efron 1979, doi 10.1214/aos/1176344552.
    """
    values = np.array([value for value in values if not math.isnan(value)], dtype=float)
    if len(values) < 2:
        return None
    mean = values.mean()
    deviations = draw_documents(len(values), resamples, seed) @ (values - mean) / len(values) * widen(len(values))
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    return {"mean": float(mean), "low": float(mean + low), "high": float(mean + high)}
