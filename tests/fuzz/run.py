"""Fuzzes what reads files from outside: python tests/fuzz/run.py --format png --minutes 10."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

import harness
from harness import Finding, Format


def main(words: list[str]) -> int:
    """Returns 1 if a case was neither read nor refused in one line, else 0."""
    os.environ.update(JAX_PLATFORMS="cpu", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # No case may write there.
    import formats

    options = _options(words, sorted(formats.FORMATS))
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    chosen = [formats.FORMATS[name] for name in options.format or formats.FORMATS]
    if options.case is not None:
        return _run_one(chosen, seed, options.case, options.keep)
    summary = {}
    share = None if options.minutes is None else 60 * options.minutes / len(chosen)
    for form in chosen:
        begin, valid = time.monotonic(), harness.valid_files(form)
        wrong = harness.refused_valid_files(form, valid)
        outcome = harness.run(
            form,
            valid,
            range(options.first, options.first + options.cases),
            seed=seed,
            until=None if share is None else begin + share,
            told=_Teller(),
        )
        seconds = time.monotonic() - begin
        print(
            f"{form.name}, seed {seed}: {outcome.cases} cases in {seconds:.0f} s, {outcome.read} "
            f"read, {outcome.refused} refused, {len(outcome.findings)} wrong",
            flush=True,
        )
        summary[form.name] = {"valid": wrong, "cases": outcome.cases, "read": outcome.read}
        summary[form.name] |= {"refused": outcome.refused, "seed": seed}
        summary[form.name]["causes"] = [
            f"{finding.command}: {finding.cause}: {finding.text} ({count} cases)"
            for finding, count in harness.causes(outcome.findings)
        ]
    if options.json is not None:
        options.json.write_text(json.dumps(summary, indent=1))
    return int(any(one["causes"] or one["valid"] for one in summary.values()))


def _options(words: list[str], names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--format", action="append", choices=names, help="may be given often; default: all")
    add("--seed", type=int, help="default: a new one, which is told")
    add("--cases", type=int, default=10**9, help="of each format; default: as many as fit the time")
    add("--first", type=int, default=0, help="number of the first case")
    add("--minutes", type=float, help="for all formats together")
    add("--case", type=int, help="runs this one again and tells all about it")
    add("--keep", type=Path, help="with --case: folder for its files")
    add("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(words)
    if options.minutes is None and options.cases == 10**9 and options.case is None:
        options.minutes = 10.0
    return options


class _Teller:
    """Prints the first finding of each cause as it comes."""

    def __init__(self):
        self._known: set[str] = set()

    def __call__(self, finding: Finding) -> None:
        if finding.cause not in self._known:
            self._known.add(finding.cause)
            print(f"WRONG {finding.cause}: {finding.text}\n  {finding.command}", flush=True)


def _run_one(chosen: list[Format], seed: int, number: int, keep: Path | None) -> int:
    """Runs one case, tells all about it, and keeps its files."""
    wrong = 0
    for form in chosen:
        valid = harness.valid_files(form)
        folder = keep or Path(tempfile.mkdtemp(prefix=f"fuzz-{form.name}-{number}-"))
        harness.write_files(harness.case_files(form, valid, seed, number), folder)
        outcome = harness.run(form, valid, range(number, number + 1), seed=seed)
        for finding in outcome.findings:
            print(f"{finding.trace}\n{finding.kind}: {finding.text}")
        print(f"{form.name}: {outcome.read} read, {outcome.refused} refused; files: {folder}")
        wrong |= bool(outcome.findings)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
