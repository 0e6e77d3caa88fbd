"""Fuzzing of the parsers and of the method's pure functions (``tests/fuzz/targets.py``) with atheris.

    pip install --no-deps atheris       # no dependency of the project
    python benchmarks/fuzz.py --minutes 10 -o benchmarks/results/fuzz-DATE.json [GROUP ...]

Each group gets its minutes, shared out evenly over its targets, one process at a time. A finding is an exception other
than UserError, or the end of the process; once it is fixed, its input goes to ``FOUND`` in
``tests/fuzz/test_targets.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_SAYS_WHY = re.compile(r"\s*(\w+\.)*\w*(Error|Exception)\b|==\d+== ERROR")
MOST_FINDINGS = 5
"""Of one target: after so many it is given up."""


def fuzz_one(name: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Fuzz one target in processes of its own, a new one after each finding."""
    corpus = folder / name
    corpus.mkdir()
    (corpus / "zeros").write_bytes(bytes(40))
    executions, findings, start = 0, list[dict[str, str]](), time.monotonic()
    while (left := seconds - (time.monotonic() - start)) > 1 and len(findings) < MOST_FINDINGS:
        command = [sys.executable, __file__, "--child", name, "--", f"-max_total_time={int(left)}"]
        command += ["-print_final_stats=1", "-max_len=600", "-rss_limit_mb=6000", "-timeout=60"]
        command += [f"-artifact_prefix={folder}/{name}-", str(corpus)]
        # Notes are for the first process of a run: another rank is quiet.
        environment = {**os.environ, "RANK": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, env=environment, cwd=folder, check=False)
        said = (done.stdout + done.stderr).decode(errors="replace")
        counted = re.search(r"number_of_executed_units:\s+(\d+)", said) or re.search(r"#(\d+)\t\S+(?!.*#\d+\t)", said)
        executions += int(counted[1]) if counted else 0
        if done.returncode == 0:
            break
        artifact = re.search(r"Test unit written to (\S+)", said)
        lines = [line for line in said.splitlines() if _SAYS_WHY.match(line)]
        findings.append(
            {
                "said": lines[0].strip() if lines else said[-300:],
                "input": Path(artifact[1]).read_bytes().hex() if artifact else "",
            }
        )
    return {
        "target": name,
        "seconds": round(time.monotonic() - start, 1),
        "executions": executions,
        "inputs_kept": len(list(corpus.iterdir())),
        "crashes": findings,
    }


def child(name: str, arguments: list[str]) -> None:
    """One process of libFuzzer; it ends by itself."""
    import atheris

    with atheris.instrument_imports(include=["logodata", "logotrain", "logoeval"]):
        from tests.fuzz.targets import run_target
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    atheris.Setup(["fuzz", *arguments], lambda data: run_target(name, data, folder))
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help="of tests/fuzz/targets.py; all by default")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each group")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON; results of other groups in it are kept")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.fuzz.targets import GROUPS

    found = json.loads(options.output.read_text()) if options.output.exists() else {}
    rows = {row["target"]: row for row in found.get("targets", [])}
    for group in options.groups or GROUPS:
        for target in GROUPS[group]:
            with tempfile.TemporaryDirectory() as folder:
                seconds = 60 * options.minutes / len(GROUPS[group])
                row = fuzz_one(target.__name__, seconds, Path(folder))
            rows[row["target"]] = {"group": group, **row}
            print(json.dumps(rows[row["target"]]), flush=True)
            record = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "python": platform.python_version(),
                "minutes_a_group": options.minutes,
                "targets": list(rows.values()),
            }
            options.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[4:])
    else:
        main()
