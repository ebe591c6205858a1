"""One row of every registered set, in the form that its page describes.

``(row, the problem's text, the gold answer)`` by name of the source. The
contents are ours; only the field names and types are theirs.
"""

from __future__ import annotations

import json

NUMINA = {
    "problem": "What is 2 + 3?",
    "solution": "Adding gives $\\boxed{5}$.",
    "messages": [{"role": "user", "content": "What is 2 + 3?"}],
}
OPEN_RS = {"problem": "Find x.", "solution": "So $x = \\boxed{\\frac12}$."}

ROWS = {
    "numina-tir": (NUMINA, "What is 2 + 3?", "5"),
    "numina-cot": (NUMINA | {"source": "cn_k12"}, "What is 2 + 3?", "5"),
    "numina-qwq": (
        {
            "problem_id": 7,
            "prompt": "How many?",
            "response": "I count. \\boxed{12}",
            "ground_truth": "12",
            "correct": True,
        },
        "How many?",
        "12",
    ),
    "gsm8k": (
        {"question": "How much?", "answer": "6 * 3 = 18\n#### 1,018"},
        "How much?",
        "1,018",
    ),
    "gsm8k-train": (
        {"question": "How old?", "answer": "It is -4.\n#### -4"},
        "How old?",
        "-4",
    ),
    "gsm-hard": (
        {
            "input": "How far?",
            "code": "def solution():\n    return 2125368.0",
            "target": 2125368.0,
        },
        "How far?",
        "2125368",
    ),
    "math-500": (
        {
            "problem": "Simplify.",
            "solution": "It is $\\boxed{\\frac{1}{2}}$.",
            "answer": "\\frac{1}{2}",
            "subject": "Algebra",
            "level": 2,
            "unique_id": "test/algebra/1.json",
        },
        "Simplify.",
        "\\frac{1}{2}",
    ),
    "aime-2024": (
        {
            "ID": "2024-II-4",
            "Problem": "Find m+n.",
            "Solution": "33",
            "Answer": 33,
        },
        "Find m+n.",
        "33",
    ),
    "aime-2024-h4": (
        {
            "id": 60,
            "problem": "Find it.",
            "solution": "s",
            "answer": "204",
            "url": "u",
            "year": "2024",
        },
        "Find it.",
        "204",
    ),
    "aime-2025": ({"question": "Sum?", "answer": "070"}, "Sum?", "070"),
    "amc23": (
        {
            "id": 0,
            "question": "Meet?",
            "problem": "Meet?",
            "answer": "27.0",
            "url": "u",
        },
        "Meet?",
        "27",
    ),
    "mathnet": (
        {
            "id": "a1",
            "problem_markdown": "Find all $n$.",
            "final_answer": "$n=2$",
            "solutions_markdown": ["..."],
            "country": "X",
        },
        "Find all $n$.",
        "n=2",
    ),
    "minerva": (
        {
            "problem": "How heavy?",
            "solution": "It is \\boxed{1.6e10} g.",
            "type": "t",
            "idx": 1,
        },
        "How heavy?",
        "1.6e10",
    ),
    "olympiadbench": (
        {
            "id": 3,
            "question": "Which?",
            "answer": "$2,3$",
            "solution": ["s"],
            "final_answer": ["2,3"],
        },
        "Which?",
        "2,3",
    ),
    "orca-math": (
        {"question": "Left?", "answer": "He has 9 - 4 = 5 left."},
        "Left?",
        "5",
    ),
    "math-step-dpo": (
        {
            "dataset": "d",
            "prompt": "Area?",
            "initial_reason_steps": "",
            "chosen": "c",
            "rejected": "r",
            "full_chosen": "It is 8.",
            "full_rejected": "It is 7.",
            "answer": "8",
        },
        "Area?",
        "8",
    ),
    "open-s1": (OPEN_RS, "Find x.", "\\frac12"),
    "open-deepscaler": (OPEN_RS | {"answer": "1/2"}, "Find x.", "1/2"),
    "open-rs": (
        OPEN_RS | {"answer": None, "level": "Hard"},
        "Find x.",
        "\\frac12",
    ),
}


def write_rows(path, rows):
    """Write rows as JSON lines; returns the path."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path
