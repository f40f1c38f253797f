"""Fail a build if an engine is worse than its checkpoint: gates, a JUnit file for the CI server, exit code 1.

python examples/verify_in_ci.py bundle/ m2h-tiny rooms/ --junit parity.xml
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m2h_deploy import M2HError
from m2h_deploy.parity import Gates, verify
from m2h_deploy.parity.report import write_junit

#: How much worse than the checkpoint the engine may be; the other gates have their defaults.
GATES = Gates(miou_drop=0.5, rmse_increase=1.0)


def main() -> int:
    """Read the options, compare, print the gates, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="bundle folder")
    parser.add_argument("reference", help="the checkpoint, or its float32 ONNX file")
    parser.add_argument("data", help="NYUv2, RGB-D pairs, or a folder of pictures")
    parser.add_argument("--split", default="val", help="split of the data: train, val (the default), test or all")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the gates as JUnit test cases")
    options = parser.parse_args()
    result = verify(options.bundle, options.reference, options.data, split=options.split, gates=GATES)
    for gate in result.gates:
        print(f"{gate.verdict}: {gate.message}")
    if options.junit:
        write_junit(result, options.junit)
    print(f"{'PASSED' if result.passed else 'FAILED'}: {result.summary}")
    return 0 if result.passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except M2HError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
