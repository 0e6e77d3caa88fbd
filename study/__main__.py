"""Run a study, or continue it, and write its report: ``python -m study cpu``."""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from logodata.common.command_line import Command, run_program
from logodata.common.console import note
from logodata.common.errors import UserError, raised_by
from logodata.common.files import bind_settings, locked, write_atomic
from logodata.common.options import FILE, Choice, option, output_option
from logodata.common.recipes.reading import load_recipe
from logodata.recipe.settings import BuildRecipe
from logoeval.recipe.settings import EvalRecipe
from logotrain.recipe.settings import TrainRecipe
from study.archive import unpack
from study.corpora import read_fairytaleqa
from study.jobs import Job, Study
from study.outcome import chosen_rates
from study.report import all_jobs, write_report
from study.scale import SCALES
from study.schedule import Journal, run_jobs
from study.splits import own_documents, split_corpus


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, and return the exit code (0 done, 2 the input is at fault, 130 interrupted)."""
    return run_program(program, argv)


@click.command(
    "study",
    cls=Command,
    help="Run a study, or go on with it, and write its report.",
    examples="""
    python -m study cpu
    python -m study cpu --tenth --cache none
    python -m study large --fairytaleqa FairytaleQAData
    """,
)
@click.argument("scale_name", type=Choice(tuple(SCALES)), metavar="SCALE", help=f"how large: {', '.join(SCALES)}")
@output_option("folder of all results (evidence/SCALE)")
@option("--report DIR", "folder of the report (docs/results, or below it)", type=FILE)
@option("--cache FILE", "responses made before; 'none' generates all of them", type=FILE)
@option("--longbench FILE", "LongBench's data.zip or rows: what fits of it is measured", type=FILE)
@option("--fairytaleqa DIR", "a clone of github.com/uci-soe/FairytaleQAData, for SCALE large and gpu", type=FILE)
@option("--measured FILE", "begin with the measurements that stand beside a report", type=FILE)
@option("--tenth", "a trial at about a tenth of the size, with one seed, for nothing but that")
@option("--list", "print the commands and stop", name="list_")
@option("--so-far", "write the report of what has been measured, also beside a study that runs, and stop")
def program(
    scale_name: str,
    output: Path | None,
    report: Path | None,
    cache: Path | None,
    longbench: Path | None,
    fairytaleqa: Path | None,
    tenth: bool,
    measured: Path | None,
    list_: bool,
    so_far: bool,
) -> None:
    """``python -m study``."""
    scale = SCALES[scale_name]
    if tenth:
        scale = replace(scale, seeds=scale.seeds[:1])
    cache = scale.cache if cache is None and scale.cache.is_file() else cache
    study = Study(
        scale,
        output or Path("evidence") / (f"{scale.name}-tenth" if tenth else scale.name),
        None if cache is None or str(cache) == "none" else cache,
        longbench,
        scale.tenth if tenth else {},
    )
    if list_:
        for job in all_jobs(study, {}):  # no rate is chosen before the runs
            print(job.command)
        return
    if (scale.corpus is None) != (fairytaleqa is None) and not (so_far and measured is None):
        mend = "leave --fairytaleqa out" if scale.corpus is None else "give --fairytaleqa DIR"
        raise UserError(f"SCALE {scale.name} has {'its own' if scale.corpus is None else 'no'} documents", mend=mend)
    if so_far and measured is None:  # perhaps beside a study that runs and holds the lock
        _report(study, Journal(study.folder), report or study.folder / "report")
        return
    with locked(study.folder), raised_by(signal.SIGHUP, KeyboardInterrupt):  # a terminal that is closed ends the jobs
        prepare(study, fairytaleqa)
        if measured is not None:
            unpack(measured, study)
        journal = Journal(study.folder)
        if not so_far:
            run_all(study, journal)
        _report(study, journal, report or (study.folder / "report" if tenth or so_far else scale.report))


def run_all(study: Study, journal: Journal) -> None:
    """Run all jobs of a study that are not done, in three phases."""
    total = len(all_jobs(study, {}))

    def rates_so_far() -> dict[str, float]:
        return chosen_rates(study, journal.collapsed())

    def run(title: str, queues: Sequence[Iterable[Sequence[Job]]]) -> None:
        note(f"== {title}")
        run_jobs(queues, study.scale.workers, study.folder, journal, total)

    run("1/3 data, and the model as it was", [[chain] for chain in study.beginning()])
    others = [[[job]] for job in study.later_builds()]
    run("2/3 other data; each method with its learning rate", [*others, *study.methods(rates_so_far)])
    rates = rates_so_far()
    run("3/3 other rows and seeds", [[chain] for chain in (*study.rows(rates), *study.curves(rates))])


def _report(study: Study, journal: Journal, folder: Path) -> None:
    write_report(study, chosen_rates(study, journal.collapsed()), journal, folder)
    note(f"wrote {folder / 'README.md'}")


def prepare(study: Study, corpus: Path | None = None) -> None:
    """Write the documents of each split, of the folder ``corpus`` or of the project, and bind the folder to them and
    the recipe.

    Commands name these inputs by path and are not run again once they are done, so the inputs must not change.

    Raises:
        UserError: the folder was begun with other documents or another recipe, or ``corpus`` is none.
    """
    recipe = study.scale.recipe
    documents = (
        own_documents(study.scale.heldout_questions) if corpus is None else split_corpus(read_fairytaleqa(corpus))
    )
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


if __name__ == "__main__":
    sys.exit(main())
