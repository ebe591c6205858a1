"""``python -m helpers course`` is ``mathslm course``."""

from helpers.cli import app

app(prog_name="mathslm")
