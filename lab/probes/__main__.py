"""`python -m lab.probes RECIPE_OR_MODEL ...`: capability cards in the terminal."""

import sys
from dataclasses import replace

from lab.probes.plots import plot_cards
from lab.probes.probing import FULL, Settings, probe


def main(arguments: list[str] | None = None) -> None:
    """Prints a card for each recipe or saved model; `--picture FILE` draws them side by side."""
    import tyro

    def command(
        subjects: tyro.conf.Positional[list[str]],
        tasks: list[str] | None = None,
        full: bool = False,
        seconds: float | None = None,
        seeds: int | None = None,
        workers: int = 2,
        fresh: bool = False,
        picture: str = "",
    ) -> None:
        """Capability cards: what small copies of an architecture learn to do on nine synthetic tasks.

        Args:
            subjects: recipes such as "Norm->Attn->+->Norm->MLP->+", names of saved models, or paths to their folders
            tasks: some of recall, fuzzy, noisy, copying, compression, memorisation, induction, parity, cups
            full: a copy for each level of difficulty, harder levels, more rates and seeds
            seconds: CPU seconds of training for each run, at most
            seeds: runs for each rate
            workers: processes
            fresh: train again what was found before
            picture: draw accuracy against difficulty into this file
        """
        if not subjects:
            raise ValueError("subjects: none given; give a recipe in quotes, or a saved model's name")
        base = FULL if full else Settings()
        given = {"seconds": seconds, "seeds": seeds}
        settings = replace(base, **{name: value for name, value in given.items() if value is not None})
        cards = []
        for subject in subjects:
            cards.append(probe(subject, settings=settings, tasks=tasks, workers=workers, fresh=fresh))
            print(f"{cards[-1]}\n", flush=True)
        if picture:
            plot_cards(cards).savefig(picture, dpi=130)

    try:
        tyro.cli(command, args=arguments, prog="python -m lab.probes")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
