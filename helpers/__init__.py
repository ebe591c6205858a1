"""Math-SLM Lab: the package behind the course notebooks.

Importing :mod:`helpers`, or one of its rooms up to ``results``, loads no
torch. ``helpers.load_recipe("pocket")`` reads a tier's recipe.
"""

import logging
from typing import Any

__version__ = "0.1.0"

# bitsandbytes warns on import of an optional kernel for CPUs, and at every
# 8-bit product of the cast of its input.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name == "load_recipe":  # not above: its package needs the version
        from helpers.base import load_recipe

        return load_recipe
    raise AttributeError(f"module 'helpers' has no attribute '{name}'")
