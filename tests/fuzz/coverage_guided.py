"""Fuzz every target of `targets.py` with atheris, which follows coverage: `python -m tests.fuzz.coverage_guided`.

Run by hand, now and then, in an environment of its own: `pip install atheris` beside p2pnet[train,dev]; p2pnet does
not depend on it. Each target gets a process, so many seconds and so much memory. Exit status 1 when something was
found; the input then lies in --work. What was run and found is in README.md beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

MEMORY_MB = 2048  # torch itself takes 300
INPUT_BYTES_MAX = 64 << 10


def fuzz(name: str, corpus: Path, seconds: int) -> None:
    """Run one target in this process, until libFuzzer ends it."""
    import atheris

    # What reads bytes is instrumented as it is loaded; torch stays as it is, or nothing would get done.
    with atheris.instrument_imports(include=["p2pnet", "tomllib", "multiaddr"]):
        from tests.fuzz.targets import TARGETS
    target = next(one for one in TARGETS if one.name == name)
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={INPUT_BYTES_MAX}", "-timeout=20"]
    quiet = ["-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={corpus.parent}/{name}-"]
    atheris.Setup([sys.argv[0], *limits, *quiet, str(corpus)], target.run)
    atheris.Fuzz()


def watch(name: str, work: Path, seconds: int) -> dict[str, Any]:
    """Run one target in a process of its own; returns what it did."""
    log = work / f"{name}.log"
    command = [sys.executable, "-m", "tests.fuzz.coverage_guided", "--only", name, "--work", str(work)]
    with log.open("wb") as file:
        done = subprocess.run([*command, "--seconds", str(seconds)], stdout=file, stderr=subprocess.STDOUT, check=False)
    text = log.read_text(errors="replace")
    runs = re.findall(r"stat::number_of_executed_units:\s*(\d+)", text)
    covered = re.findall(r"cov: (\d+)", text)
    memory = re.findall(r"stat::peak_rss_mb:\s*(\d+)", text)
    artefacts = sorted(path.name for path in work.glob(f"{name}-*") if path.is_file())
    return {
        "target": name,
        "executions": int(runs[-1]) if runs else 0,
        "edges_first": int(covered[0]) if covered else 0,
        "edges": int(covered[-1]) if covered else 0,
        "peak_rss_mb": int(memory[-1]) if memory else 0,
        "status": done.returncode,
        "found": artefacts,
    }


def main() -> None:
    """Run the targets one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help="which; all when none is named")
    parser.add_argument("--seconds", type=int, default=150, help="for each target (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("fuzz-work"), help="corpora, logs and findings")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        fuzz(options.only, options.work / "corpus" / options.only, options.seconds)
        return
    from tests.fuzz.targets import TARGETS

    options.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for target in TARGETS:
        if options.targets and target.name not in options.targets:
            continue
        rows.append(watch(target.name, options.work, options.seconds))
        print(json.dumps(rows[-1]), flush=True)
    (options.work / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(row["found"] or row["status"] for row in rows))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
