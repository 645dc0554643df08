"""Translate images between domains without pairs: MUNIT and its family. See README.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unpaired.errors import Problem
from unpaired.heap import huge_pages

if TYPE_CHECKING:
    from unpaired.metrics.evaluation import evaluate
    from unpaired.translator import Translator

__version__ = "0.1.0"
__all__ = ["Problem", "Translator", "evaluate"]
huge_pages()  # before anything of ours makes a tensor


def __getattr__(name: str) -> Any:
    if name == "Translator":  # torch is loaded only by those who use it
        from unpaired.translator import Translator

        return Translator
    if name == "evaluate":
        from unpaired.metrics.evaluation import evaluate

        return evaluate
    raise AttributeError(f"module 'unpaired' has no attribute '{name}'")
