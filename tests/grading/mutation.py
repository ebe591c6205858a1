"""Is every rule of the grader needed by some labelled case?

``python -m tests.grading.mutation`` switches the rules of the grader off, one
at a time (see ``mutants``), and runs the labelled cases that pass
through the rule until one comes out wrong. Rules that no case needs are
listed with their place. ``--all`` also forces every condition on;
``--module NAME`` looks at one module only. What must not be changed is in
``equivalent_mutants.txt``; rules that no case needs yet are in
``open_mutants.txt`` (``--retry`` tries them again, ``--write-open`` tries
all and writes the list anew).

Kept tools were looked at first: mutmut 3 leaves code outside of functions
alone (all our tables), and it and cosmic-ray start a test run per mutant;
here all mutants share one process and one compilation.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from mutants import (  # noqa: E402
    Loader,
    Mutant,
    Site,
    Switchboard,
    answers,
)

CASES = ROOT / "tests" / "grading_cases.jsonl"
OPEN = Path(__file__).with_name("open_mutants.txt")
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")
OPEN_HEAD = "# Rules that no labelled case needs yet; this list only shrinks."
GRADER = ROOT / "helpers" / "grading"
CPU_A_CASE = 2.0
CPU_A_MUTANT = 60.0
WALL_A_MUTANT = 240.0
MEMORY = 6 << 30
# Tests of what cannot be a labelled case: hostile and odd input, direct
# calls. A case here is one set of arguments of one test function.
TESTS = (
    "test_policy", "test_policy_of_extraction", "test_reason_is_in_words",
    "test_odd_input_is_graded_not_raised", "test_a_bound_is_a_reason",
    "test_lists_of_different_length_are_refused",
    "test_reader_refuses_what_is_not_on_its_list",
    "test_extraction_says_how",
    "test_long_and_empty_answers_are_not_taken_for_equal",
)  # fmt: skip


class OutOfTime(BaseException):
    """A case used more CPU time than it may."""


@dataclass
class Case:
    """One thing to run: ``check`` returns what is wrong, or None."""

    name: str
    text: str
    check: Callable[[], str | None]
    seconds: float = 0.0
    seen: set[tuple[int, Any]] = field(default_factory=set)


def _raise_out_of_time(*_: Any) -> None:
    raise OutOfTime


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime after that much CPU time, again and again."""
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class Suite:
    """The instrumented grader and everything to run on it."""

    def __init__(self, folder: Path = GRADER):
        self.board = Switchboard()
        self.loader = Loader(folder, self.board)
        sys.meta_path.insert(0, self.loader)
        self.grading: Any = None
        self.tests: Any = None
        self.at_import: set[int] = set()
        # The usual answer and reason of each case. A case whose verdict
        # stays, but not these, is a hint: it might state its reason.
        self.usual: dict[str, tuple[str | None, str]] = {}
        self.hint: str | None = None
        self.cap: int | None = None
        self.ways: tuple[frozenset[str], dict[str, frozenset[Any]]] = (
            frozenset(), {},
        )  # fmt: skip
        self.patience = 0
        self.killers: dict[str, list[str]] = {}
        self.seconds = math.inf
        signal.signal(signal.SIGPROF, _raise_out_of_time)
        self.reload(record=True)
        self.mutants = self.loader.mutants()
        self.cases = [*self._labelled(), *self._functions(TESTS)]

    def reload(self, record: bool = False) -> None:
        """Import the package again, so that tables are built again."""
        self.board.recording, self.board.seen = record, set()
        self.grading = self.loader.load()
        if record:
            self.at_import = {number for number, _ in self.board.seen}
        self.board.recording = False
        self.tests = None

    # ---- cases -----------------------------------------------------------

    def _labelled(self) -> Iterator[Case]:
        for line in CASES.read_text(encoding="utf-8").splitlines():
            case = json.loads(line)
            text = f"{case['response']} {case['gold']}".lower()
            yield Case(case["id"], text, lambda case=case: self._grade(case))

    def _grade(self, case: dict[str, Any]) -> str | None:
        grade = self.grading.grade_many([case["response"]], [case["gold"]])[0]
        if grade.correct != case["label"]:
            return f"is {grade.correct} ({grade.reason})"
        if grade.reason.startswith("not readable ("):
            return grade.reason  # an exception that nobody meant
        if grade.extracted != case.get("extracted", grade.extracted):
            return f"extracted {grade.extracted!r}"
        if grade.reason != case.get("reason", grade.reason):
            return f"reason {grade.reason!r}"
        stated = (grade.extracted, grade.reason)
        usual = self.usual.setdefault(case["id"], stated)
        if stated != usual:
            self.hint = self.hint or f"{case['id']}: {usual!r} -> {stated!r}"
        return None

    def _functions(self, names: tuple[str, ...]) -> Iterator[Case]:
        module = self._module()
        for name in names:
            count = len(_argument_sets(getattr(module, name)))
            for i in range(count):
                yield Case(
                    f"{name}[{i}]",
                    "",
                    lambda name=name, i=i: self._run_test(name, i),
                )

    def _module(self) -> Any:
        if self.tests is None:
            sys.modules.pop("test_grading", None)
            self.tests = importlib.import_module("test_grading")
        return self.tests

    def _run_test(self, name: str, i: int) -> str | None:
        test = getattr(self._module(), name)
        try:
            test(**_argument_sets(test)[i])
        except (Exception, pytest.fail.Exception) as error:
            return f"{type(error).__name__}: {str(error)[:80]}"
        return None

    # ---- running ---------------------------------------------------------

    def run_case(self, case: Case, seconds: float = CPU_A_CASE) -> str | None:
        """Return what is wrong with a case, None when it is right."""
        try:
            with limited(seconds):
                return case.check()
        except OutOfTime:
            return "out of time"
        except (Exception, RecursionError, MemoryError) as error:
            return f"{type(error).__name__}: {str(error)[:80]}"

    def baseline(self) -> list[str]:
        """Run everything unchanged; drop and return the cases that fail."""
        failing, kept = [], []
        for case in self.cases[:20]:  # mpmath loads on its first use
            self.run_case(case, 60.0)
        self.board.listening = True
        self.reload()
        for number, case in enumerate(self.cases):
            self.board.recording, self.board.seen = True, set()
            self.board.case = number
            self.clear_caches()
            started = time.process_time()
            wrong = self.run_case(case, 60.0)
            case.seconds = time.process_time() - started
            self.board.recording = False
            case.seen = self.board.seen
            if wrong:
                failing.append(f"{case.name}: {wrong}")
            else:
                kept.append(case)
        self.names = [case.name for case in self.cases]
        self.cases = sorted(kept, key=lambda c: c.seconds)
        self.board.listening = False
        self.reload()
        return failing

    def _sensitive(self, mutant: Mutant) -> set[str] | None:
        """Return the cases in which a pattern finds something else.

        None where that is not known: the pattern is a part of another one.
        """
        number = mutant.site.number
        asked = self.board.asked.get(number)
        if mutant.site.kind != "pattern" or asked is None:
            return None
        flags = self.board.flags[number]
        old = re.compile(self.board.strings[number], flags)
        try:
            new = re.compile(mutant.variant, flags)
        except re.error:
            return None
        changed: set[int] = set()
        for key, cases in asked.items():
            if not cases <= changed and answers(old, key) != answers(new, key):
                changed |= cases
        return {self.names[number] for number in changed}

    def clear_caches(self) -> None:
        """Forget what a mutant left in ``lru_cache``."""
        for name in self.loader.codes:
            module = sys.modules.get(name)
            for value in list(vars(module).values()) if module else ():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()

    def candidates(self, mutant: Mutant) -> list[Case]:
        """Return the cases that the mutant can change."""
        site = mutant.site
        names = self._sensitive(mutant)
        if names is not None:
            chosen = [c for c in self.cases if c.name in names]
            return self._mixed(chosen, {site.function})
        if site.number in self.at_import:
            return self._by_text(mutant)
        wanted: tuple[int, Any] = (site.number, None)
        if site.kind == "test":
            wanted = (site.number, not mutant.variant)
        return self._mixed(
            [c for c in self.cases if wanted in c.seen], {site.function}
        )

    def _mixed(self, cases: list[Case], functions: set[str]) -> list[Case]:
        """Order cases so that unlike ways through functions alternate."""
        ways = self.ways_through(frozenset(functions))
        turns: dict[frozenset[Any], int] = {}
        keyed = []
        for case in cases:
            way = ways[case.name]
            turns[way] = turns.get(way, 0) + 1
            keyed.append((turns[way], case))
        return [case for _, case in sorted(keyed, key=lambda k: k[0])]

    def ways_through(
        self, functions: frozenset[str]
    ) -> dict[str, frozenset[Any]]:
        """Return how each case goes through the sites of some functions."""
        if self.ways[0] != functions:
            here = {
                s.number for s in self.loader.sites if s.function in functions
            }
            ways = {
                c.name: frozenset(s for s in c.seen if s[0] in here)
                for c in self.cases
            }
            self.ways = functions, ways
        return self.ways[1]

    def _readers(self, site: Site) -> list[Case]:
        """Return the cases that run a function which reads the table."""
        functions = self.loader.readers.get(site.source, set())
        with_sites = {s.function for s in self.loader.sites}
        if not functions or functions - with_sites:
            return self._mixed(self.cases, functions)
        ways = self.ways_through(frozenset(functions))
        return self._mixed([c for c in self.cases if ways[c.name]], functions)

    def _by_text(self, mutant: Mutant) -> list[Case]:
        """Put cases first that hold the text of the entry or alternative."""
        word = re.sub(r"^no (?:entry )?|['\"\\\\]", "", mutant.words).lower()
        word = re.sub(r"\W.*", "", word) or word[:1]
        cases = self._readers(mutant.site)
        return sorted(cases, key=lambda c: word not in c.text)

    def kill(self, mutant: Mutant) -> str | None:
        """Return the first case that notices the mutant, or None."""
        killers = self.killers.setdefault(mutant.site.function, [])
        # Neighbours are often noticed by the same cases: those come first.
        cases = sorted(
            self.candidates(mutant), key=lambda c: c.name not in killers[:30]
        )[: self.cap]
        self.hint = None
        importing = mutant.site.number in self.at_import
        self.board.active = mutant.site.number
        self.board.variant = mutant.variant
        try:
            if importing:
                try:
                    self.reload()
                except Exception as error:
                    if mutant.site.kind == "pattern":
                        return f"invalid: {error}"
                    return f"import: {type(error).__name__}: {error}"
            self.clear_caches()
            patience = self.patience
            stop = time.process_time() + self.seconds
            for case in cases:
                if time.process_time() > stop:
                    break
                limit = CPU_A_CASE + 10 * case.seconds
                if wrong := self.run_case(case, limit):
                    killers.insert(0, case.name)
                    return f"{case.name}: {wrong}"
                if self.hint and patience:
                    patience -= 1
                    if not patience:
                        break
            return None
        finally:
            self.board.active = None
            if importing:
                self.reload()
            self.clear_caches()


def _argument_sets(test: Any) -> list[dict[str, Any]]:
    """Return the argument sets of a pytest function."""
    sets: list[dict[str, Any]] = [{}]
    for mark in getattr(test, "pytestmark", []):
        if mark.name != "parametrize":
            continue
        names = mark.args[0]
        if isinstance(names, str):
            names = [n.strip() for n in names.split(",")]
        rows = [v if len(names) > 1 else (v,) for v in mark.args[1]]
        sets = [
            {**old, **dict(zip(names, row, strict=True))}
            for old in sets
            for row in rows
        ]
    return sets


# ---- processes that can be killed ------------------------------------------


def _work(suite: Suite, pipe: Connection) -> None:
    """Answer the driver: the number of a mutant in, its killer out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    while (number := pipe.recv()) is not None:
        started = time.monotonic()
        killer = suite.kill(suite.mutants[number])
        seconds = time.monotonic() - started
        pipe.send((number, killer, seconds, suite.hint))


@dataclass
class Hand:
    """A forked process, and the mutant it works on."""

    process: Any
    pipe: Connection
    number: int = -1
    started: float = 0.0
    cpu: float = 0.0

    @classmethod
    def fork(cls, suite: Suite) -> Hand:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(suite, theirs), daemon=True
        )
        process.start()
        theirs.close()
        return cls(process, ours)

    def give(self, number: int) -> None:
        """Start on a mutant."""
        self.number, self.started = number, time.monotonic()
        self.cpu = self.cpu_now()
        self.pipe.send(number)

    def cpu_now(self) -> float:
        """CPU seconds of the process so far."""
        import psutil

        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error:
            return self.cpu
        return float(times.user + times.system)

    def is_stuck(self) -> bool:
        """Say whether the mutant has used up its time."""
        if time.monotonic() - self.started > WALL_A_MUTANT:
            return True
        return self.cpu_now() - self.cpu > CPU_A_MUTANT


@dataclass
class Outcome:
    """What happened to a mutant; ``killer`` is None for a survivor."""

    mutant: Mutant
    killer: str | None
    seconds: float
    hint: str | None = None


def run(
    suite: Suite,
    mutants: list[int],
    hands: int | None = None,
    minutes: float = 0,
    log: Path | None = None,
) -> list[Outcome]:
    """Try all the mutants, in forked processes that can be killed."""
    stop_at = time.monotonic() + 60 * minutes
    hands = hands or os.cpu_count() or 1
    todo = list(reversed(mutants))
    team = [Hand.fork(suite) for _ in range(min(hands, len(todo)))]
    outcomes: dict[int, Outcome] = {}
    bar = tqdm(total=len(todo), desc="mutants", mininterval=2)

    def finish(number: int, *result: Any) -> None:
        outcomes[number] = Outcome(suite.mutants[number], *result)
        bar.update()
        if minutes and time.monotonic() > stop_at:
            todo.clear()
        if log is not None:  # a run that is killed has not run in vain
            with log.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(_row(outcomes[number])) + "\n")

    for hand in team:
        hand.give(todo.pop())
    while team:
        ready = wait([h.pipe for h in team], timeout=1.0)
        for i, hand in list(enumerate(team)):
            fresh = hand
            if hand.pipe in ready:
                try:
                    finish(*hand.pipe.recv())
                except EOFError:
                    hand.process.join()
                    finish(hand.number, "the process died", 0.0)
                    fresh = Hand.fork(suite)
            elif hand.is_stuck():
                hand.process.kill()
                hand.process.join()
                finish(hand.number, "hang", time.monotonic() - hand.started)
                fresh = Hand.fork(suite)
            else:
                continue
            team[i] = fresh
            if todo:
                fresh.give(todo.pop())
            else:
                fresh.pipe.send(None)
                team.remove(fresh)
                fresh.process.join()
    bar.close()
    return [outcomes[n] for n in mutants if n in outcomes]


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--all", action="store_true", help="force conditions on, too")
    add("--list", action="store_true", help="print all keys and stop")
    add("--retry", action="store_true", help="try only what is open")
    add("--write-open", action="store_true", help="write survivors as open")
    add("--module", action="append", help="look at this module only")
    add("--kind", action="append", help="test, table, pattern or rewrite")
    add("--key", help="look at mutants with this in their key")
    add("--folder", type=Path, default=GRADER, help="another grader")
    add("--cap", type=int, help="cases to try for each mutant, at most")
    add("--seconds", type=float, default=math.inf,
        help="CPU seconds for each mutant, at most")  # fmt: skip
    add("--minutes", type=float, default=0, help="stop after so long")
    add("--log", type=Path, help="append each outcome at once")
    add("--keys", type=Path, help="try only the mutants of this list")
    add("--share", default="1/1", help="2/4: the second quarter of them")
    add("--only", help="try only cases whose name starts like this")
    add("--hints", type=int, default=0, metavar="N",
        help="stop N cases after one whose reason changes")  # fmt: skip
    add("--hands", type=int, help="processes")
    add("--json", type=Path, help="write what happened to each mutant")
    return parser.parse_args(arguments)


def choose_mutants(suite: Suite, options: argparse.Namespace) -> list[int]:
    """Return the numbers of the mutants to try."""
    still_open, exempt = set(read_keys(OPEN)), set(read_keys(EQUIVALENT))
    listed = set(read_keys(options.keys)) if options.keys else set()
    chosen = []
    for number, mutant in enumerate(suite.mutants):
        key, site = mutant.key, mutant.site
        if options.keys:
            if key in listed:
                chosen.append(number)
            continue
        if key in exempt or not (mutant.rule or options.all):
            continue
        if (key in still_open) != options.retry and not options.write_open:
            continue
        module = site.module.rsplit(".", 1)[-1]
        wanted = (
            (not options.kind or site.kind in options.kind)
            and (not options.module or module in options.module)
            and (not options.key or options.key in key)
        )
        if wanted:
            chosen.append(number)
    share, shares = map(int, options.share.split("/"))
    return chosen[share - 1 :: shares]


def read_keys(path: Path) -> list[str]:
    """Return the keys of a list of mutants; # starts a remark."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "place": outcome.mutant.place, "key": outcome.mutant.key,
        "kind": outcome.mutant.site.kind, "rule": outcome.mutant.rule,
        "killer": outcome.killer, "hint": outcome.hint,
        "seconds": round(outcome.seconds, 3),
    }  # fmt: skip


def write_report(path: Path, outcomes: list[Outcome]) -> None:
    """Write one row for each mutant."""
    rows = [_row(outcome) for outcome in outcomes]
    path.write_text(json.dumps(rows, indent=0), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Print the rules that no case needs."""
    options = read_options(arguments)
    started = time.monotonic()
    suite = Suite(options.folder)
    suite.patience, suite.cap = options.hints, options.cap
    suite.seconds = options.seconds
    if options.list:
        print("\n".join(sorted({m.key for m in suite.mutants})))
        return
    if options.only:
        suite.cases = [c for c in suite.cases if options.only in c.name]
    for line in suite.baseline():
        print("fails unchanged:", line)
    chosen = choose_mutants(suite, options)
    outcomes = run(suite, chosen, options.hands, options.minutes, options.log)
    valid = [o for o in outcomes if not (o.killer or "").startswith("invalid")]
    alive = [o for o in valid if o.killer is None]
    for outcome in alive:
        hint = f"   [{outcome.hint}]" if outcome.hint else ""
        print(f"{outcome.mutant.place}: {outcome.mutant.key}{hint}")
    print(
        f"{len(suite.cases)} cases, {len(valid)} mutants, "
        f"{len(valid) - len(alive)} killed, {len(alive)} survive, "
        f"{(time.monotonic() - started) / 60:.1f} minutes"
    )
    if options.json:
        write_report(options.json, valid)
    if options.write_open:
        keys = sorted({o.mutant.key for o in alive})
        text = "".join(f"{line}\n" for line in (OPEN_HEAD, *keys))
        OPEN.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
