"""experiments"""

__all__ = []
