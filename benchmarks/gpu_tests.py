"""A part of gpu.py: the tests marked ``gpu``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from gpu_part import Bench

ROOT = Path(__file__).parents[1]


def tests(bench: Bench) -> dict[str, Any]:
    """Run the tests of leaks, gradients and kernels on the GPU, and return pytest's verdict on each."""
    report = bench.scratch / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    ended = subprocess.run([*command, "tests/logotrain"], cwd=ROOT, timeout=bench.left()).returncode
    verdicts: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    messages: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        fault = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        verdict = "passed" if fault is None else "skipped" if fault.tag == "skipped" else "failed"
        verdicts[verdict].append(name)
        if verdict == "failed" and fault is not None:
            messages[name] = fault.get("message", "")[:400]
    summary = [", ".join(f"{len(names)} {verdict}" for verdict, names in verdicts.items())]
    summary += [f"FAILED {name}: {message[:120]}" for name, message in messages.items()]
    return {**verdicts, "messages": messages, "exit_code": ended, "summary": summary}
