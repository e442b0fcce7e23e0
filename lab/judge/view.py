"""To look at: grades as a table."""

from typing import TYPE_CHECKING

from lab.judge.questions import AGE_GROUPS, CRITERIA
from lab.stories.view import cell

if TYPE_CHECKING:
    from pandas import DataFrame


def rows(result: dict) -> list[dict[str, str]]:
    """A line for each run: grades with their intervals, the shares of the age groups, unanswered questions."""
    return [
        {
            "model": name,
            **{criterion: cell(record["scores"][criterion], "{:.2f}") for criterion in CRITERIA},
            **{f"{group}: {years}": f"{record['ages'][group]:.0%}" for group, years in AGE_GROUPS.items()},
            "unanswered": f"{record['unanswered']:.1%}",
        }
        for name, record in result["models"].items()
    ]


def table(result: dict) -> "DataFrame":
    """The same as a DataFrame, models as rows."""
    import pandas as pd

    return pd.DataFrame(rows(result)).set_index("model")
