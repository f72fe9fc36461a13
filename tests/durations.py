"""Sums the seconds of tests by folder, from the file that `pytest --junit-xml FILE` writes.

python -m pytest --junit-xml tests.xml && python tests/durations.py tests.xml
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path


def seconds_by_folder(text: str) -> dict[str, tuple[int, float]]:
    """Returns how many tests each folder holds and their seconds, the longest first.

    Args:
      text: the XML. Setting up and tearing down count; what a fixture of a file makes counts for
        the first test that asks for it.
    """
    sums = defaultdict(lambda: (0, 0.0))
    for case in ElementTree.fromstring(text).iter("testcase"):
        parts = case.get("classname", "").split(".")
        # As tests.cli.test_main, or tests.test_house of a file beside the folders.
        folder = parts[1] if len(parts) > 2 and not parts[1].startswith("test_") else "tests"
        count, seconds = sums[folder]
        sums[folder] = count + 1, seconds + float(case.get("time", 0))
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def main(path: str) -> None:
    """Prints a table in Markdown."""
    sums = seconds_by_folder(Path(path).read_text(encoding="utf-8"))
    print("| folder | tests | seconds |\n|---|---|---|")
    for folder, (count, seconds) in sums.items():
        print(f"| {folder} | {count:,} | {seconds:,.0f} |")
    total = sum(count for count, _ in sums.values()), sum(time for _, time in sums.values())
    print(f"| all | {total[0]:,} | {total[1]:,.0f} |")


if __name__ == "__main__":
    main(sys.argv[1])
