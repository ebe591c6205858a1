"""``python -m helpers.report`` is ``mathslm report``."""

from helpers.cli import main_stage

main_stage("report")
