"""A benchmark of several parts: which are wanted, and one JSON file of what was measured, settings and machine beside
it."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evidence import environment
from logodata.common.errors import UserError

Measures = Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]]


def parser_of_parts(doc: str | None, parts: Collection[str], *, threads: int) -> argparse.ArgumentParser:
    """A parser with the names of parts, ``--json``, ``--model`` and ``--threads``.

    Args:
        doc: the benchmark's own.
        parts: that it has.
        threads: of torch, by default.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)} (default all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured here")
    parser.add_argument("--model", default="embedded", help="what is measured (embedded)")
    parser.add_argument("--threads", type=int, default=threads, metavar="N", help=f"of torch ({threads})")
    return parser


def parse_parts(parser: argparse.ArgumentParser, argv: Sequence[str] | None, parts: Collection[str]) -> Any:
    """The command line.

    Raises:
        UserError: a part that the benchmark does not have.
    """
    arguments = parser.parse_args(argv)
    unknown = [part for part in arguments.parts if part not in parts]
    if unknown:
        raise UserError(f"no part {unknown[0]!r}", mend=f"there are {', '.join(parts)}")
    return arguments


def run_parts(arguments: argparse.Namespace, measures: Measures) -> int:
    """Measure the parts that are wanted, in the order of ``measures``, and write the file."""
    torch.set_num_threads(arguments.threads)
    sizes = {name: value for name, value in vars(arguments).items() if name not in ("json", "parts", "vllm")}
    report: dict[str, Any] = {"settings": json.loads(json.dumps(sizes, default=str)), **environment()}
    report["versions"]["transformers"] = importlib.metadata.version("transformers")
    for part, measure in measures.items():
        if not arguments.parts or part in arguments.parts:
            report[part] = measure(arguments)
    report["load_average_at_end"] = os.getloadavg()[0]
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0
