"""`python -m lab.judge NAME ...`: has the stories of saved models graded, in the terminal."""

import sys
from typing import Annotated

from lab.judge.grading import judge
from lab.judge.plan import estimate
from lab.judge.server import HOW, address
from lab.judge.view import rows


def main(arguments: list[str] | None = None) -> None:
    """`python -m lab.judge NAME ...`: has the stories of saved models graded."""
    import tyro

    def command(
        names: tyro.conf.Positional[list[str]],
        prompts: str = "storyworld",
        stop: Annotated[bool, tyro.conf.arg(name="estimate")] = False,
        yes: bool = False,
        save: bool = False,
        with_seeds: bool = True,
        completions: int | None = None,
        at_once: int = 4,
        price_in: float | None = None,
        price_out: float | None = None,
    ) -> None:
        """Grades for the stories of saved models, by the judge that SANDBOX_JUDGE_URL and SANDBOX_JUDGE_MODEL name.

        Args:
            names: folders of trained_models/, or paths to such folders
            prompts: a .yaml, .json, .jsonl or .txt file, or "storyworld"
            stop: say what it would cost, and stop there
            yes: go ahead without asking
            save: keep the grades in each model's evaluation.json
            with_seeds: also the runs of these models with other seeds
            completions: how many completions of each prompt are graded (default: all)
            at_once: calls that are under way at a time
            price_in: price of a million tokens that the judge reads
            price_out: price of a million tokens that it writes
        """
        if not stop and address() is None:
            raise ValueError(HOW)
        same = dict(completions=completions, with_seeds=with_seeds)
        cost = estimate(names, prompts, price_in=price_in, price_out=price_out, **same)
        print(cost["sentence"])
        if stop:
            return
        if cost["calls"] and not yes and not _agreed():
            sys.exit("stopped: nothing was asked")
        _print(judge(names, prompts, confirm=True, save=save, at_once=at_once, progress=True, **same))

    try:
        tyro.cli(command, args=arguments, prog="python -m lab.judge")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _agreed() -> bool:
    try:
        return input("Go ahead? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # nobody is there to answer
        return False


def _print(result: dict) -> None:
    from lab.evaluation import markdown

    print(markdown(rows(result)))
    print("\n".join(difference["sentence"] for difference in result["differences"]))


if __name__ == "__main__":
    main()
