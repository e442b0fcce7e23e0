"""What an architecture can do, in ten minutes on two cores: a card of nine synthetic tasks.

    card = probe("Norm->RGLRU->+->Norm->MLP->+")           # a recipe, a saved model's name or folder, or a ModelConfig
    print(card);  card.df();  card                         # in a notebook the last shows a table
    plot_cards([card, probe("0.5m")])                      # accuracy against difficulty, a panel for each task

    python -m lab.probes "Norm->Attn->+->Norm->MLP->+" 0.5m --picture cards.png

Small copies (2 layers of width 64) are trained on each task from random weights, so a saved model's card is one of its
architecture, not of its weights.

tasks.py holds the tasks, training.py one run, summary.py what becomes of a task's runs, probing.py the whole, cache.py
what is kept between calls, card.py and plots.py what is shown.
"""

from lab.probes.card import PROTOCOL, Card
from lab.probes.plots import plot_cards
from lab.probes.probing import Settings, probe
from lab.probes.tasks import TASKS

__all__ = ["PROTOCOL", "TASKS", "Card", "Settings", "plot_cards", "probe"]
