"""The catalogue: one file for each family of blocks beyond the everyday ones of model.py.

Importing this package registers them all; `model.find_block` does so when a recipe names one of them.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
