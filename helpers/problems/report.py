"""What became of every row of a source: counts, reasons and examples."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

STEPS = (
    "read",
    "schema",
    "filter",
    "gold",
    "duplicates",
    "decontamination",
    "cap",
)
MAX_EXAMPLES = 3


@dataclass
class LoadReport:
    """Rows of one source that survive each of ``STEPS``.

    ``total`` is the size of the source where it is known; ``read`` is less
    when enough rows were found before its end. ``dropped`` counts reasons
    per step, ``examples`` has the first ids of each, ``golds`` says which
    field and rule gave the answers, ``unused`` names columns that are not
    read, ``notes`` what else differs from the registry.
    """

    name: str
    where: str = ""
    asked: int | None = None
    total: int | None = None
    steps: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(STEPS, 0)
    )
    dropped: dict[str, Counter[str]] = field(
        default_factory=lambda: {step: Counter() for step in STEPS}
    )
    examples: dict[str, list[str]] = field(default_factory=dict)
    golds: Counter[str] = field(default_factory=Counter)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """Rows that survived everything."""
        return self.steps["cap"]

    @property
    def n_dropped(self) -> int:
        """Rows that were read and left out for a reason, the cap aside."""
        counts = (c for s, c in self.dropped.items() if s != "cap")
        return sum(sum(count.values()) for count in counts)

    def drop(self, step: str, reason: str, row_id: str) -> None:
        """Count a row that ends at ``step``, and why."""
        self.dropped[step][reason] += 1
        shown = self.examples.setdefault(f"{step}: {reason}", [])
        if len(shown) < MAX_EXAMPLES:
            shown.append(row_id)

    def find_loss(self) -> str:
        """The step that left nothing, or "" when something is left."""
        for step in STEPS:
            if not self.steps[step]:
                return step
        return ""

    def list_reasons(self) -> list[str]:
        """One line per reason: step, count, reason, first ids."""
        return [
            f"{step}: {count:,} × {reason} "
            f"(e.g. {', '.join(self.examples[f'{step}: {reason}'])})"
            for step, counts in self.dropped.items()
            for reason, count in counts.most_common()
        ]

    def __str__(self) -> str:
        of = f" of {self.total:,}" if self.total is not None else ""
        lines = [
            f"{self.name}: {self.steps['read']:,}{of} rows read, "
            f"{self.kept:,} kept ({self.where})"
        ]
        lines += [f"  {line}" for line in self.list_reasons()]
        lines += [f"  note: {line}" for line in self.notes]
        return "\n".join(lines)
