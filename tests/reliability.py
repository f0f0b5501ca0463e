"""What is tried on damaged and nonsensical inputs, and how it is answered: `make fuzz` counts it.

An input has two good answers: a result that is checked, or one sentence that names the file or the setting. Anything
else - another exception, a hang, more memory than foreseen, a file half-written - is a bug.

python -m tests.reliability --minutes 10 [--out TABLE.md]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from diffseg.errors import UserError, printable

ROOT = Path(__file__).parents[1]
RESULT, SENTENCE, ELSE = "result", "sentence", "anything else"
TALLY: Counter[tuple[str, str]] = Counter()  # (class of input, answer) -> inputs
LIMIT_S = 30.0  # nothing that is tried here takes a second; several times that is a hang
LIMIT_BYTES = 2**30  # by which one input may raise the peak of memory
Value = TypeVar("Value")


@dataclass(frozen=True)
class Answer(Generic[Value]):
    """value: the result; None where the answer is a sentence."""

    value: Value | None = None
    sentence: str = ""


def answer(kind: str, act: Callable[[], Value], *names: object) -> Answer[Value]:
    """What `act` answers; anything but a result or a sentence fails the test.

    Args:
        kind: the class of input that it is counted under. names: files and settings, one of which a sentence must name.
    """
    before = peak_bytes()
    try:
        with in_time(LIMIT_S):
            value = act()
    except (UserError, OSError) as error:
        check_sentence(kind, str(error), *names)
        return Answer(sentence=str(error))
    except BaseException:
        TALLY[kind, ELSE] += 1
        raise
    check_peak(kind, before)
    TALLY[kind, RESULT] += 1
    return Answer(value)


def check_sentence(kind: str, sentence: str, *names: object) -> None:
    """One line (a list of files may follow, indented) that names what is wrong, and more than its name."""
    first, *rest = sentence.splitlines() or [""]
    words = len(first.split()) >= 3
    named = not names or any(str(name) in sentence for name in names)
    good = words and named and printable(sentence) == sentence and all(line.startswith("  ") for line in rest)
    TALLY[kind, SENTENCE if good else ELSE] += 1
    assert good, f"no sentence that names one of {[str(name)[:80] for name in names]}: {sentence[:2000]!r}"


def check_peak(kind: str, before: int) -> None:
    """Fails where an input has raised the peak of memory by more than is foreseen."""
    grown = peak_bytes() - before
    if grown > LIMIT_BYTES:
        TALLY[kind, ELSE] += 1
        raise AssertionError(f"{grown / 2**20:.0f} MiB for one input")


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class HangError(AssertionError):
    """An answer that did not come in time."""


@contextmanager
def in_time(limit_s: float) -> Iterator[None]:
    """Ends what takes longer with an error."""

    def late(*_: object) -> None:
        raise HangError(f"no answer in {limit_s:g} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def keep_tally() -> None:
    """Adds this process's counts to the file $FUZZ_TALLY, where `main` has asked for them."""
    file = os.environ.get("FUZZ_TALLY")
    if file:
        with Path(file).open("a") as lines:
            lines.writelines(json.dumps([*key, count]) + "\n" for key, count in TALLY.items())


def table(tally: Counter[tuple[str, str]]) -> str:
    """The counts in Markdown, a row for each class of input."""
    kinds = sorted({kind for kind, _ in tally})
    rows = [[kind, *(tally[kind, given] for given in (RESULT, SENTENCE, ELSE))] for kind in kinds]
    rows.append(["**all**", *(sum(tally[kind, given] for kind in kinds) for given in (RESULT, SENTENCE, ELSE))])
    lines = ["| class of input | tried | answered with a result | with a sentence | anything else |"]
    lines.append("|---|---:|---:|---:|---:|")
    lines += [f"| {kind} | {sum(counts):,} | {' | '.join(f'{n:,}' for n in counts)} |" for kind, *counts in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rounds of tests/test_fuzz.py, each with other inputs, until the time is over or one fails; then the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="begin no new round after this long (default: 10)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round (default: the clock)")
    parser.add_argument("--out", type=Path, help="a file for the table, besides the terminal")
    options, more = parser.parse_known_args()
    start, status, seed = time.monotonic(), 0, options.seed
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tally.jsonl")
        file.touch()
        environment = {**os.environ, "HYPOTHESIS_PROFILE": "long", "FUZZ_TALLY": str(file)}
        while not status and time.monotonic() - start < 60 * options.minutes:
            command = [sys.executable, "-m", "pytest", "-q", "tests/test_fuzz.py", f"--hypothesis-seed={seed}", *more]
            status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
            seed += 1
        tally: Counter[tuple[str, str]] = Counter()
        for line in file.read_text().splitlines():
            kind, given, count = json.loads(line)
            tally[kind, given] += count
    written = table(tally)
    print(f"\n{written}")
    if options.out:
        options.out.write_text(written)
    if status:
        print(f"the round of --seed {seed - 1} failed, see above", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
