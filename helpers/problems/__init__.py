"""Problem sets: load them by name, mix them, keep test problems out.

:func:`load_problems` resolves a name of :data:`SOURCES` or a file;
:func:`load_source` also says what became of every row; :func:`load_mix`
draws from several sources and fails when one is lost;
:func:`decontaminate` finds training problems in evaluation sets.
"""

from helpers.problems.contamination import (
    ContaminationIndex,
    ContaminationReport,
    Hit,
    decontaminate,
)
from helpers.problems.load import (
    STEPS,
    LoadReport,
    load_problems,
    load_source,
    load_up_to,
)
from helpers.problems.mix import Mix, build_index, load_mix
from helpers.problems.rows import (
    find_copy,
    find_kept,
    hash_problems,
    is_local,
    kept_file,
)
from helpers.problems.sources import (
    GYM_FAMILIES,
    GYM_PREFIX,
    SOURCES,
    Source,
    find_source,
)
from helpers.problems.worked import BadSolution, write_worked

__all__ = [
    "GYM_FAMILIES",
    "GYM_PREFIX",
    "SOURCES",
    "STEPS",
    "BadSolution",
    "ContaminationIndex",
    "ContaminationReport",
    "Hit",
    "LoadReport",
    "Mix",
    "Source",
    "build_index",
    "decontaminate",
    "find_copy",
    "find_kept",
    "find_source",
    "hash_problems",
    "is_local",
    "kept_file",
    "load_mix",
    "load_problems",
    "load_source",
    "load_up_to",
    "write_worked",
]
