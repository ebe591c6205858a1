"""An ``nvidia-smi`` on the path that lists made-up cards."""

from __future__ import annotations

import os
import sys

SCRIPT = """\
#!{python}
import sys

CARDS = {cards!r}
fields = next(
    word.partition("=")[2].split(",")
    for word in sys.argv
    if word.startswith("--query-gpu")
)
for card in CARDS:
    print(", ".join(card[name] for name in fields))
"""


def put_cards(folder, monkeypatch, count, name="NVIDIA H100", **facts):
    """So many equal cards; ``gib`` and ``capability`` describe one."""
    cards = [
        {
            "index": str(i),
            "uuid": f"GPU-{i}{i}{i}",
            "name": name,
            "memory.total": f"{facts.get('gib', 80.0) * 1024:.0f}",
            "memory.used": "0",
            "compute_cap": facts.get("capability", "9.0"),
        }
        for i in range(count)
    ]
    path = folder / "nvidia-smi"
    path.write_text(SCRIPT.format(python=sys.executable, cards=cards))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
