"""Sum up the tests of several targets: summary.py FOLDER TARGET..., with pytest's FOLDER/TARGET.xml of each.

Print what was skipped and why, then what each target did, then one line over all. A test that one target skips and
another one runs is not skipped. The exit code is 1 if a test failed or a target has no results.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

#: Outcomes, the weakest first: of a test that several targets name, the strongest counts.
OUTCOMES = ("skipped", "passed", "failed")

#: A test's class and name.
Test = tuple[str, str]


def read(path: Path) -> tuple[dict[Test, str], dict[Test, str], float] | None:
    """Return each test's outcome, why it was skipped, and the seconds of all; None if there are no results."""
    try:
        suite = ElementTree.parse(path).getroot().find("testsuite")
    except (OSError, ElementTree.ParseError):
        return None
    if suite is None:
        return None
    outcomes: dict[Test, str] = {}
    reasons: dict[Test, str] = {}
    for case in suite.iter("testcase"):
        test = case.get("classname", ""), case.get("name", "")
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = "failed"
        elif skip is not None:
            outcome, reasons[test] = "skipped", skip.get("message", "")
        else:
            outcome = "passed"
        outcomes[test] = max(outcome, outcomes.get(test, outcome), key=OUTCOMES.index)
    return outcomes, reasons, float(suite.get("time", 0))


def words(outcomes: list[str], seconds: float) -> str:
    """Return the counts of a target's outcomes and its minutes as text."""
    counts = Counter(outcomes)
    numbers = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))
    return f"{numbers} in {seconds / 60:.1f} minutes"


def main(folder: str, *targets: str) -> int:
    """Print the results of all targets, and return the exit code: 1 if a test failed or a target left no results."""
    outcomes: dict[Test, str] = {}
    reasons: dict[Test, str] = {}
    total = 0.0
    lines, missing = [], []
    for target in targets:
        results = read(Path(folder) / f"{target}.xml")
        if results is None:
            missing.append(target)
            continue
        ran, why, seconds = results
        for test, outcome in ran.items():
            outcomes[test] = max(outcome, outcomes.get(test, outcome), key=OUTCOMES.index)
        reasons |= why
        total += seconds
        lines.append(f"{target}: {words(list(ran.values()), seconds)}")
    skipped = Counter(reasons[test] for test, outcome in outcomes.items() if outcome == "skipped")
    for reason, count in skipped.most_common():
        print(f"skipped {count}: {reason}")
    print("\n".join(lines))
    without = f"; no results of {', '.join(missing)}" if missing else ""
    print(f"all: {words(list(outcomes.values()), total)}{without}")
    return int(bool(missing) or "failed" in outcomes.values())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
