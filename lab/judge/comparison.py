"""Which of two models got the better grades, and whether that is more than noise."""

from lab.intervals import bootstrap_mean
from lab.judge.questions import CRITERIA


def differences(records: dict[str, dict]) -> list[dict]:
    """For each two runs and criterion the mean of A - B over the same prompts, with its 95 % interval.

    [{"a", "b", "criterion", "mean", "low", "high", "told_apart", "prompts", "sentence"}, ...]: above 0 where A is
    better; not told apart where the interval holds 0. Only prompts for which both were graded count. Runs that were
    judged otherwise, or on other prompts, are not compared.
    """
    found = []
    names = list(records)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if _comparable(records[a], records[b]):
                found += [_difference(a, b, criterion, records) for criterion in CRITERIA]
    return [difference for difference in found if difference]


def _comparable(a: dict, b: dict) -> bool:
    same = ("protocol", "judge", "options", "fingerprint", "stories", "decoding", "completions")
    return all(a[field] == b[field] for field in same)


def _difference(a: str, b: str, criterion: str, records: dict[str, dict]) -> dict | None:
    pairs = zip(records[a]["by_prompt"][criterion], records[b]["by_prompt"][criterion], strict=True)
    values = [x - y for x, y in pairs if x is not None and y is not None]
    interval = bootstrap_mean(values)
    if interval is None:
        return None
    apart = interval["low"] > 0 or interval["high"] < 0
    better, worse = (a, b) if interval["mean"] > 0 else (b, a)
    low, high = sorted(abs(interval[end]) for end in ("low", "high"))
    words = f"{criterion}: no difference beyond noise between {a} and {b}"
    if apart:
        words = f"{criterion}: {better} is better than {worse} by {abs(interval['mean']):.2f} ({low:.2f} to {high:.2f})"
    facts = {"told_apart": apart, "prompts": len(values), "sentence": f"{words} (95 %, {len(values)} prompts)"}
    return {"a": a, "b": b, "criterion": criterion, **interval, **facts}
