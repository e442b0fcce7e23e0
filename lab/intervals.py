"""How sure a share of right answers is, and what guessing would give.

    summary([1, 0, 0.5, 1], chances=[0.5] * 4)     # {"accuracy": 0.625, "interval": [0.22, 0.91], ...}

All intervals are for 95 %, and take the answers as independent draws.
"""

import math
from collections.abc import Sequence

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
    return [max(0.0, middle - half), min(1.0, middle + half)]


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
