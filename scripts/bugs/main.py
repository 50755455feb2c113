"""Each bug of the list is planted in a copy of the code, and its tests should see it; see scripts/plant."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import agreeing
import computing
import crossing
import islands
import lending
import lowbit
import resting
import saving
import surviving
from bug import Bug, Stale
from copies import ROOT, copied, tested

BUGS = [
    *saving.BUGS,
    *agreeing.BUGS,
    *computing.BUGS,
    *crossing.BUGS,
    *islands.BUGS,
    *lending.BUGS,
    *lowbit.BUGS,
    *resting.BUGS,
    *surviving.BUGS,
]
LIMIT = 200.0  # seconds of one bug's tests
ALL = 1200.0  # seconds of the tests without a bug
PASSED, FAILED = 0, 1  # exit codes of pytest


@dataclass(frozen=True)
class Result:
    """test: the one that caught the bug, and in what words; None where none did."""

    bug: str
    file: str
    test: str | None
    reason: str
    seconds: float


def unplanted(targets: Sequence[str]) -> None:
    """Stale where a test fails anyway: it would catch nothing."""
    with copied() as copy:
        found = tested(copy, targets, ALL)
    if found.code != PASSED:
        raise Stale(f"without a bug {found.test or 'pytest'} fails:\n{found.output}")


def caught(bug: Bug) -> Result:
    with copied() as copy:
        (copy / "samestep" / bug.file).write_text(bug.planted(copy))
        try:
            found = tested(copy, bug.targets, LIMIT)
        except subprocess.TimeoutExpired:
            return Result(bug.name, bug.file, None, f"its tests did not end in {LIMIT:.0f} s", LIMIT)
    if found.code not in (PASSED, FAILED):
        raise Stale(f"{bug.name}: pytest ended with {found.code}:\n{found.output}")
    test = (found.test or "a test that pytest did not name") if found.code == FAILED else None
    result = Result(bug.name, bug.file, test, found.reason, found.seconds)
    print(_line(result), file=sys.stderr, flush=True)
    return result


def plant(bugs: Sequence[Bug], jobs: int) -> list[Result]:
    for bug in bugs:
        bug.planted(ROOT)
    targets = sorted({target for bug in bugs for target in bug.targets})
    with ThreadPoolExecutor(jobs) as pool:
        try:
            list(pool.map(unplanted, filter(None, (targets[job::jobs] for job in range(jobs)))))
            return list(pool.map(caught, bugs))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C and a stale list end it after the tests under way
            raise


def table(results: Sequence[Result]) -> str:
    missed = [result for result in results if result.test is None]
    rows = [f"{'bug':<66}  seconds  caught by", *map(_line, results)]
    return "\n".join([*rows, f"{len(results)} bugs, {len(results) - len(missed)} caught"])


def _line(result: Result) -> str:
    by = result.test.removeprefix("tests/") if result.test else "NOT CAUGHT"
    return f"{result.bug:<66}  {result.seconds:7.1f}  {by}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    parser.add_argument("--jobs", type=int, default=2, help="bugs at a time")
    parser.add_argument("--only", default="", help="bugs with this in their name or file")
    return parser.parse_args()


def main() -> int:
    """0 where all were caught, 2 where the list does not fit the code."""
    asked = arguments()
    bugs = [bug for bug in BUGS if asked.only in f"{bug.name} {bug.file}"]
    try:
        results = plant(bugs, asked.jobs)
    except Stale as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"results": [asdict(result) for result in results]}) if asked.json else table(results))
    return any(result.test is None for result in results)


if __name__ == "__main__":
    sys.exit(main())
