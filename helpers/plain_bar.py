"""A tqdm bar for output that is read later: a few whole lines."""

from __future__ import annotations

import io
import sys
import time

PLAIN_SECONDS = 15.0


def make_plain_bar() -> type:
    """A tqdm that prints whole lines to standard output, and few."""
    from tqdm.std import tqdm

    class PlainBar(tqdm):
        """One line every ``PLAIN_SECONDS``, and one at the end."""

        def __init__(self, *args, **options):
            self.shown = time.monotonic()
            super().__init__(*args, **{**options, "file": io.StringIO()})

        def display(self, *args, **options) -> bool:
            """Print the line when it is due or the last one."""
            last = self.total is not None and self.n >= self.total
            if last and self.shown is not None:
                self.shown = None
            elif self.shown is None or (
                time.monotonic() - self.shown < PLAIN_SECONDS
            ):
                return False
            else:
                self.shown = time.monotonic()
            print(str(self), flush=True, file=sys.stdout)
            return True

    return PlainBar
