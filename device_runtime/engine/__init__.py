"""A bundle's model on this machine: prompt in, text out.

`LanguageModel` is loaded when it is first used, so that a submodule's import does not load the whole engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from device_runtime.engine.language_model import LanguageModel

__all__ = ["LanguageModel"]


def __getattr__(name: str) -> object:
    if name != "LanguageModel":
        raise AttributeError(f"device_runtime.engine has no {name!r}")
    from device_runtime.engine.language_model import LanguageModel

    return LanguageModel
