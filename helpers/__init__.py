"""Math-SLM Lab: the package behind the course notebooks.

Importing :mod:`helpers` or any of its floor 1 and 2 modules (``recipes``,
``records``, ``grading``, ``stats`` …) loads no torch.
"""

__version__ = "0.1.0"
