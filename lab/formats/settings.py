"""Settings of someone else's config.json, each checked as it is read: every error names the setting and its value."""

from __future__ import annotations

from typing import Any

REQUIRED: Any = object()  # the default of a setting that has none


def size(hf: dict, name: str, default: int = REQUIRED, *, low: int = 1) -> int:
    """A whole number from `low` up."""
    value = _get(hf, name, default)
    return _checked(hf, name, value, type(value) is int and value >= low, f"a whole number from {low} up")


def number(hf: dict, name: str, default: float | None = REQUIRED) -> float | None:
    """A positive, finite number; None only where that is the default."""
    value = _get(hf, name, default)
    if value is None:
        return _checked(hf, name, value, default is None, "a positive number")
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    return _checked(hf, name, value, fits, "a positive number")


def flag(hf: dict, name: str, default: bool = False) -> bool:
    """true or false."""
    value = _get(hf, name, default)
    return _checked(hf, name, value, isinstance(value, bool), "true or false")


def text(hf: dict, name: str) -> str:
    value = _get(hf, name, REQUIRED)
    return _checked(hf, name, value, isinstance(value, str), "a text")


def refuse(hf: dict, name: str, *held, why: str) -> None:
    """Raises ValueError if the setting is there with another value than those that a `GPT` holds."""
    if hf.get(name) not in (None, *held):
        raise ValueError(f"{name}={hf[name]!r} (model_type={hf['model_type']}) can't be held: {why}")


def _get(hf: dict, name: str, default):
    """The setting; the default where it is left out or null."""
    value = hf.get(name)
    return default if value is None and default is not REQUIRED else value


def _checked(hf: dict, name: str, value, fits: bool, what: str):
    if not fits:
        raise ValueError(f"{name}={value!r} in the config of this {hf['model_type']} model must be {what}")
    return value
