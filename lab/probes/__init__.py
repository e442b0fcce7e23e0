"""What an architecture can do, in ten minutes on two cores: a card of nine synthetic tasks.

    card = probe("Norm->RGLRU->+->Norm->MLP->+")           # a recipe, a saved model's name or folder, or a ModelConfig
    print(card);  card.df();  card                         # in a notebook the last shows a table
    plot_cards([card, probe("0.5m")])                      # accuracy against difficulty, a panel for each task

    python -m lab.probes "Norm->Attn->+->Norm->MLP->+" 0.5m --picture cards.png

Small copies (2 layers of width 64) are trained on each task from random weights, so a saved model's card is one of its
architecture, not of its weights. tasks.py holds the tasks, training.py one run, card.py what becomes of all runs.
"""

from lab.probes.card import PROTOCOL, Card, Settings, plot_cards, probe
from lab.probes.tasks import TASKS

__all__ = ["PROTOCOL", "TASKS", "Card", "Settings", "plot_cards", "probe"]
