"""The evaluation tasks: one table, in the order in which ``logoeval run`` measures them.

A new task is a module with an :class:`~logoeval.tasks.evaluator.Evaluator` and an entry here: its command, its section
of a recipe, its place in results and comparisons follow. Only a section of its own in the report is written elsewhere
(:mod:`logoeval.report.page`). The table holds what the command line shows, and loads a task's module when it is needed:
``--help`` imports no numpy and no pydantic.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from logoeval.records import Curve, Metric
    from logoeval.tasks.evaluator import Evaluator


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a task's command that stands for a field of the task's settings."""

    flag: str
    """The option, such as ``--limit``."""
    field: str
    """The dotted name of the field below the task's section."""
    help: str = ""
    """What the option does; :meth:`describe` adds the field."""
    kind: Literal["text", "path", "names", "number", "switch"] = "text"
    """What follows the option: ``names`` are separated by commas; nothing follows a ``switch``."""
    metavar: str = ""
    """What stands for the value in the help."""
    value: object = True
    """What a switch sets the field to."""
    needs: str = ""
    """Another option, without which this one means nothing."""

    def describe(self, task: str) -> str:
        """Return the help text for the command of ``task``."""
        shown = {"switch": json.dumps(self.value), "names": f"[{self.metavar}]"}.get(self.kind, self.metavar)
        same = f"same as {task}.{self.field}={shown}"
        return f"{self.help}; {same}" if self.help else same

    def setting(self, given: Any) -> object:
        """Return the value of the field where the option was given as ``given``."""
        if self.kind == "names":
            return [name.strip() for name in given.split(",")]
        return self.value if self.kind == "switch" else given


@dataclass(frozen=True, slots=True)
class Task:
    """An evaluation task as the command line and a recipe know it."""

    name: str
    """Its command, its section of a recipe, and its key in ``results.json``."""
    module: str
    """The module whose ``EVALUATOR`` measures it."""
    title: str
    """Its name for readers."""
    help: str
    """What its command does: one sentence."""
    override: str
    """An override of a recipe field, as an example."""
    examples: tuple[str, ...]
    """Whole command lines."""
    options: tuple[Option, ...] = ()
    answers: str = ""
    """The name of its answers where wrong ones are counted (:mod:`logoeval.compare.wrong_answers`); empty where it asks
    no questions with short texts as references."""
    over_checkpoints: tuple[str, ...] = ()
    """The metrics that are shown where ``--checkpoints`` measures it at every checkpoint of a training run
    (:mod:`logoeval.checkpoints`), as far as they were measured; empty where it does not. They are shares."""

    @property
    def evaluator(self) -> Evaluator[Any]:
        """The evaluator that measures it. Its module is imported at the first use."""
        evaluator: Evaluator[Any] = import_module(self.module).EVALUATOR
        return evaluator


_BUILD = Option("--data", "data", "folder that logodata build wrote", "path", "DIR")

TASKS: tuple[Task, ...] = (
    Task(
        "longbench",
        "logoeval.tasks.longbench.task",
        "LongBench",
        "Measure LongBench, or LongBench-E: 21 tasks on long texts, with the official prompts and scores.",
        "engine.max_model_len=8192",
        ("logoeval longbench --model embedded --data data.zip --tasks qasper,hotpotqa -o runs/before",),
        (
            Option("--data", "data", "data.zip, folder or file of rows", "path", "PATH"),
            Option("--tasks", "tasks", kind="names", metavar="A,B"),
            Option("-e", "e", "LongBench-E", "switch"),
        ),
        answers="LongBench QA",
    ),
    Task(
        "longbench2",
        "logoeval.tasks.longbench2.task",
        "LongBench v2",
        "Measure LongBench v2: 503 multiple-choice questions on texts of up to millions of words.",
        "longbench2.mode=cot",
        ("logoeval longbench2 --model embedded --data data.json --limit 20 -o runs/before",),
        (
            Option("--data", "data", "data.json, file or folder of rows, or the hub data set", "path", "PATH"),
            Option("--limit", "max_samples", "first N questions", "number", "N"),
        ),
    ),
    Task(
        "niah",
        "logoeval.tasks.needles.task",
        "Needle in a haystack",
        "Have the model find numbers hidden in a long text, by length and depth: needle in a haystack.",
        "niah.num_samples=10",
        (
            "logoeval niah --model embedded -o runs/before niah.lengths=[1024,2048] niah.num_samples=10",
            "logoeval niah --model embedded -o runs/map niah.variant=single niah.lengths=512-1536/256 "
            "niah.depths=[0,22,44,66,88]",
        ),
        (
            Option("--retrieval", "retrieval", "also what the heads find (LOGO, Eq. 5)", "switch", value={}),
            Option(
                "--heads",
                "retrieval.heads",
                "with --retrieval: heads.json of the base model's run",
                "path",
                "FILE",
                needs="--retrieval",
            ),
        ),
        over_checkpoints=("recall", "retrieval", "retrieval_forced", "said_minus_saw"),
    ),
    Task(
        "ruler",
        "logoeval.tasks.ruler.task",
        "RULER",
        "Measure RULER: 13 synthetic tasks by length, with the official prompts and scores, and the effective length.",
        "ruler.lengths=[4K,8K]",
        (
            "logoeval ruler --model embedded -o runs/before --tasks vt,fwe ruler.lengths=[1024,2048] "
            "ruler.num_samples=10",
            "logoeval ruler --model org/model -o runs/ruler --essays PaulGrahamEssays.json --squad dev-v2.0.json "
            "--hotpot hotpot_dev_distractor_v1.json ruler.num_samples=500",
        ),
        (
            Option("--tasks", "tasks", kind="names", metavar="A,B"),
            Option("--essays", "essays", "Paul Graham's essays: .json, .txt or a folder", "path", "PATH"),
            Option("--squad", "squad", "SQuAD 2.0's dev-v2.0.json", "path", "FILE"),
            Option("--hotpot", "hotpot", "HotpotQA's hotpot_dev_distractor_v1.json", "path", "FILE"),
        ),
    ),
    Task(
        "qa",
        "logoeval.tasks.qa",
        "Questions on held-out documents",
        "Measure the model's own answers to questions on held-out documents.",
        "qa.max_samples=100",
        (
            "logoeval qa --model embedded --adapter runs/logo/final --with-base --data runs/questions -o runs/qa",
            "logoeval qa --model embedded --checkpoints runs/logo/checkpoints --data runs/questions -o runs/curve",
        ),
        (_BUILD,),
        answers="Held-out questions",
        over_checkpoints=("token_f1", "word_share", "ended"),
    ),
    Task(
        "pairs",
        "logoeval.tasks.pairs",
        "Held-out preference pairs",
        "Measure held-out preference pairs: the reward margin, and the model's own answers.",
        "pairs.max_samples=16",
        ("logoeval pairs --model embedded --adapter runs/logo/final --data runs/heldout -o runs/after",),
        (_BUILD,),
        answers="Held-out pairs",
    ),
    Task(
        "ppl",
        "logoeval.tasks.perplexity",
        "Perplexity",
        "Measure the perplexity of long texts by the number of tokens read.",
        "ppl.lengths=[1024,2048]",
        ("logoeval ppl --model embedded --adapter runs/logo/final --with-base -o runs/ppl ppl.protocol=sliding",),
    ),
    Task(
        "short",
        "logoeval.tasks.short.task",
        "Short-context benchmarks",
        "Measure MMLU, ARC and TruthfulQA through lm-evaluation-harness, or any other of its tasks.",
        "short.batch_size=32",
        ("logoeval short --model embedded --adapter runs/logo/final -o runs/after --tasks arc_easy,truthfulqa_mc1",),
        (
            Option("--tasks", "tasks", kind="names", metavar="A,B"),
            Option("--include-path", "include_path", "task files (YAML) of your own", "path", "DIR"),
            Option("--limit", "limit", "first N samples of each task", "number", "N"),
        ),
    ),
)
"""What generates comes first."""


def task_names() -> list[str]:
    """Return the names of all tasks, in the order of the table."""
    return [task.name for task in TASKS]


def find_task(name: str) -> Task:
    """Return the task of this name."""
    return {task.name: task for task in TASKS}[name]


def curve_metrics(curve: Curve) -> list[Metric]:
    """Return the metrics of a curve that a reader is shown, in the order of its task's entry."""
    measured = {metric.key: metric for metric in curve.metrics}
    return [measured[key] for key in find_task(curve.task).over_checkpoints if key in measured]
