"""What the notebooks reach for, gathered in one place: look inside a module, save and load models, plot their logs.

A front door: each thing lives in the module of `lab/` it is imported from, and heavy packages are imported only when
the function that needs them is called.
"""

from lab.live import LoggingModule
from lab.plots import plot_column_from_csv
from lab.saving import load_model, save_model
from lab.show_source import show_source
from lab.tracer import diff, log_io, see_through, trace

__all__ = [
    "LoggingModule",
    "diff",
    "load_model",
    "log_io",
    "plot_column_from_csv",
    "save_model",
    "see_through",
    "show_source",
    "trace",
]
