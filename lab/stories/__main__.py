"""`python -m lab.stories NAME ...`: what saved models write, in the terminal."""

import sys

from lab.stories.saved import stories_of
from lab.stories.view import notes, rows, samples
from lab.stories.writing import Decoding


def main(arguments: list[str] | None = None) -> None:
    """`python -m lab.stories NAME ... --prompts PATH`: what saved models write, as a table."""
    import tyro

    usual = Decoding()

    def command(
        names: tyro.conf.Positional[list[str]],
        prompts: str = "storyworld",
        with_seeds: bool = True,
        save: bool = False,
        decoding: tyro.conf.OmitArgPrefixes[Decoding] = usual,
    ) -> None:
        """Several completions of each of many prompts by saved models, measured.

        Args:
            names: folders of trained_models/, or paths to such folders
            prompts: a .yaml, .json, .jsonl or .txt file, or "storyworld"
            with_seeds: also the runs of these models with other seeds
            save: keep the results in each model's evaluation.json
        """
        from lab.evaluation import markdown

        results = stories_of(names, prompts, decoding=decoding, with_seeds=with_seeds, save=save, progress=True)
        print(markdown(rows(results)))
        print("\n".join(notes(results)))
        print(f"\n{samples(results, prompts)}")

    try:
        tyro.cli(command, args=arguments, prog="python -m lab.stories")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
