"""Reads damaged and hostile inputs with every reader of foreign bytes.

    python scripts/fuzz.py                                 200,000 inputs, some minutes
    python scripts/fuzz.py --readers msgpack zarr --inputs 5000 --seed 3

An input is a valid one with a few bytes, values or files changed (tests/fuzzing). A
reader may read it, or refuse it in one line; anything else is a finding. The last thing
printed is a table; findings are kept as files under --out, and make the exit code 1.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzzing.campaign import Report, fuzz, keep
from fuzzing.readers import READERS


def main() -> int:
    """Runs a campaign and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--readers", nargs="+", default=list(READERS), metavar="NAME")
    parser.add_argument("--inputs", type=int, default=200_000, help="of all readers")
    parser.add_argument("--seconds", type=float, default=600, help="of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="fuzz-findings", help="where inputs are kept")
    options = parser.parse_args()
    unknown = sorted(set(options.readers) - set(READERS))
    if unknown:
        parser.error(f"no reader {', '.join(unknown)}; there are {', '.join(READERS)}")
    shares = sum(READERS[name].share for name in options.readers)
    reports = []
    for name in options.readers:
        inputs = -(-options.inputs * READERS[name].share // shares)
        report = fuzz(name, options.seed, inputs, options.seconds)
        reports.append(report)
        print_report(report)
        for number, (index, _) in enumerate(report.findings.values()):
            place = Path(options.out) / f"{name}-{number}".replace(" ", "_")
            files = keep(name, options.seed, index, place)
            print(f"  input {index}: {place}: {', '.join(files)}")
    print_table(reports)
    return 1 if any(report.findings for report in reports) else 0


def print_report(report: Report) -> None:
    """Prints what was found in one reader."""
    print(f"{report.reader}: {report.inputs:,} inputs in {report.seconds:.0f} s")
    for index, finding in report.findings.values():
        print(f"  {finding.kind} {finding.where}: {finding.detail} (input {index})")
    sys.stdout.flush()


def print_table(reports: list[Report]) -> None:
    """Prints all readers as a table of Markdown."""
    print("| reader | inputs | read | refused | findings |")
    print("|---|---:|---:|---:|---:|")
    for report in reports:
        counts = [report.inputs, report.counts["read"], report.counts["refused"]]
        cells = " | ".join(f"{count:,}" for count in [*counts, len(report.findings)])
        print(f"| {report.reader} | {cells} |")
    print(f"| all | {sum(report.inputs for report in reports):,} | | | |")


if __name__ == "__main__":
    sys.exit(main())
