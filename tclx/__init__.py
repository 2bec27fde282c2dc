"""tclx: a declarative spec in, a trained and evaluated vision-language model out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tclx.use.loaded import VisionLanguageModel as VisionLanguageModel
    from tclx.use.loaded import load as load

__version__ = "0.1.0"
__all__ = ["VisionLanguageModel", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `VisionLanguageModel`, imported when they are asked for: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("tclx.use.loaded"), name)
