"""Run a study, or continue it, and write its report: ``python -m study cpu``."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from logodata.common.arguments import parse_arguments
from logodata.common.console import note
from logodata.common.errors import run_command
from logodata.common.files import bind_settings, locked, write_atomic
from logodata.common.recipes.reading import load_recipe
from logodata.recipe.settings import BuildRecipe
from logoeval.recipe.settings import EvalRecipe
from logotrain.recipe.settings import TrainRecipe
from study.jobs import Job, Study
from study.outcome import chosen_rates
from study.report import all_jobs, write_report
from study.scale import DOCUMENTS, SCALES, Scale
from study.schedule import Journal, run_jobs

_EMBEDDED = {"train": "train", "heldout": "eval"}
"""The embedded documents that are added to a split. Those held out in ``make demo`` are held out here too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code (0 done, 2 bad input, 130 interrupted)."""
    parser = argparse.ArgumentParser(prog="study", description=__doc__)
    parser.add_argument("scale", choices=SCALES, help="how large")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of all results (evidence/SCALE)")
    parser.add_argument("--report", type=Path, metavar="DIR", help="folder of the report (docs/results, or below it)")
    parser.add_argument("--cache", metavar="FILE", help="responses made before; 'none' generates all of them")
    parser.add_argument("--longbench", type=Path, metavar="FILE", help="LongBench's data.zip or rows: what fits of it")
    parser.add_argument(
        "--tenth", action="store_true", help="a trial at about a tenth of the size, with one seed, for nothing but that"
    )
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    arguments = parse_arguments(parser, argv)
    return run_command("study", lambda: _study(arguments))


def _study(arguments: argparse.Namespace) -> None:
    scale = SCALES[arguments.scale]
    if arguments.tenth:
        scale = replace(scale, seeds=scale.seeds[:1])
    cache = scale.cache if arguments.cache is None and scale.cache.is_file() else arguments.cache
    study = Study(
        scale,
        arguments.output or Path("evidence") / (f"{scale.name}-tenth" if arguments.tenth else scale.name),
        None if cache in (None, "none") else Path(cache),
        arguments.longbench,
        scale.tenth if arguments.tenth else {},
    )
    if arguments.list:
        middle = sorted(scale.rates)[len(scale.rates) // 2]  # the chosen rates are not known before the runs
        for job in all_jobs(study, dict.fromkeys((tuned.name for tuned, _ in study.tried()), middle)):
            print(job.command)
        return
    with locked(study.folder):
        prepare(study)
        journal = Journal(study.folder)

        def run(title: str, chains: Sequence[Sequence[Job]]) -> None:
            note(f"== {title}: {sum(map(len, chains))} jobs")
            run_jobs(chains, scale.workers, study.folder, journal)

        run("1/4 data", [[job] for job in study.first_builds()])
        others = [[job] for job in study.later_builds()]
        run("2/4 other data of the same documents; learning rates", [*others, *study.tuning()])
        rates = chosen_rates(study)
        run("3/4 training and measurements", study.rows(rates))
        run("4/4 curves over training", [[job] for job in study.curves(rates)])
        report = arguments.report or (study.folder / "report" if arguments.tenth else scale.report)
        write_report(study, rates, journal, report)
    note(f"wrote {report / 'README.md'}")


def prepare(study: Study) -> None:
    """Write the documents of each split, and bind the folder to the documents and the recipe.

    Commands name these inputs by path and are not run again once they are done, so the inputs must not change.

    Raises:
        UserError: the folder was begun with other documents or another recipe.
    """
    documents, recipe = split_documents(study.scale), study.scale.recipe
    settings = {
        "documents": {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in documents.items()},
        "build": load_recipe(BuildRecipe, "build", recipe).model_dump(mode="json"),
        "train": load_recipe(TrainRecipe, "train", recipe).model_dump(mode="json"),
        "eval": load_recipe(EvalRecipe, "eval", recipe).model_dump(mode="json"),
    }
    bind_settings(study.folder, "study.json", settings)
    for name, text in documents.items():
        path = study.documents(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)


def split_documents(scale: Scale) -> dict[str, str]:
    """Return the documents of each split as JSON lines, the embedded ones before the study's.

    The documents of the fresh questions are the held-out ones with the questions that the held-out split does not ask.
    """
    found = {}
    for name in ("train", "validation", "heldout"):
        texts = [(DOCUMENTS / f"{name}.jsonl").read_text(encoding="utf-8")]
        if name in _EMBEDDED:
            embedded = resources.files("logodata.sources") / "embedded" / f"{_EMBEDDED[name]}.jsonl"
            texts.insert(0, embedded.read_text(encoding="utf-8"))
        found[name] = "".join(texts)
    documents = [json.loads(line) for line in found["heldout"].strip().split("\n")]
    for document in documents:
        asked = _details(document)[: scale.heldout_questions]  # the builds choose the same ones
        document["questions"] = [question for question in document["questions"] if question not in asked]
    documents.sort(key=lambda document: not _details(document))  # a trial reads only the first documents
    return {**found, "fresh": "".join(f"{json.dumps(document, ensure_ascii=False)}\n" for document in documents)}


def _details(document: dict[str, Any]) -> list[Any]:
    return [question for question in document["questions"] if question["kind"] == "single_detail"]


if __name__ == "__main__":
    sys.exit(main())
