"""Math-SLM Lab: the package behind the course notebooks.

Importing :mod:`helpers` or any of its floor 1 and 2 modules (``recipes``,
``records``, ``grading``, ``stats`` …) loads no torch.
"""

import logging

__version__ = "0.1.0"

# bitsandbytes warns on import of an optional kernel for CPUs, and at every
# 8-bit product of the cast of its input.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
