"""The scales of the study: the first, ten times its data, and that at the size of a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from study.rows import CURVES, LARGE_ROWS, LOGO, ROWS, SFT, Row

RECIPES = Path("recipes") / "study"
DOCUMENTS = Path("study") / "documents"


@dataclass(frozen=True, slots=True)
class Scale:
    """The sizes of the study that are not in the recipe.

    Attributes:
        name: name of the scale and of its recipe.
        workers: number of commands that run at the same time.
        rates: learning rates that are tried for each method.
        seeds: seeds of training.
        validation_questions: largest number of validation questions per document.
        heldout_questions: largest number of held-out questions per document.
        pair_questions: largest number of them whose pairs are measured; None for all.
        curve_task: what is measured over training: needles and retrieval, or answers to the validation questions.
        curve: its overrides.
        longbench_window: window for LongBench, in tokens.
        tenth: overrides for a trial, by program, which come after all others.
        rows: what is compared.
        curves: names of the rows whose checkpoints are measured.
        corpus: the public corpus that the user gives, of which the documents are; None for those of the project.
    """

    name: str
    workers: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    validation_questions: int
    heldout_questions: int
    curve_task: Literal["niah", "qa"]
    curve: tuple[str, ...]
    longbench_window: int = 2048
    tenth: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: tuple[Row, ...] = ROWS
    curves: tuple[str, ...] = CURVES
    corpus: Literal["fairytaleqa"] | None = None
    pair_questions: int | None = None

    def row(self, name: str) -> Row:
        """Return the row with this name."""
        return next(found for found in self.rows if found.name == name)

    @property
    def recipe(self) -> Path:
        """The recipe file of all rows."""
        return RECIPES / f"{self.name}.yaml"

    @property
    def cache(self) -> Path:
        """The file of responses that comes with the project. The same commands made it."""
        return Path("study") / f"responses-{self.name}.jsonl"

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return Path("docs") / "results" / ("" if self.name == "cpu" else self.name)

    @property
    def protocol(self) -> Path:
        """What was decided before the runs."""
        return Path("docs") / "results" / ("" if self.corpus is None else "large") / "protocol.md"


_NEEDLES = ("niah.lengths=[512]", "niah.num_samples=1")
_FEW = {
    "logodata": ("source.max_documents=6", "source.max_questions_per_document=3"),
    "logotrain": ("max_steps=2", "checkpoint.every_steps=1"),
    "logoeval qa": ("qa.max_samples=4",),
    "logoeval run": ("qa.max_samples=6", "pairs.max_samples=3", "ppl.num_documents=2", *_NEEDLES),
    "logoeval niah": (*_NEEDLES, "niah.retrieval.num_calibration=1"),
}
_ON_A_CPU = ("engine.dtype=float32",)

CPU = Scale(
    name="cpu",
    workers=2,
    rates=(2e-4, 5e-4, 1e-3, 2e-3, 4e-3),
    seeds=(0, 1, 2),
    validation_questions=8,
    heldout_questions=5,
    curve_task="niah",
    curve=("niah.lengths=[1024]", "niah.num_samples=4"),
    tenth=_FEW,
)

LARGE = Scale(
    name="large",
    workers=2,
    rates=(1.25e-4, 5e-4, 2e-3),
    seeds=(0, 1, 2),
    validation_questions=5,
    heldout_questions=4,
    pair_questions=2,
    curve_task="qa",
    curve=(),
    tenth={
        **_FEW,
        "logodata": ("source.max_documents=8", "source.max_questions_per_document=3", "source.join_tokens=4096"),
    },
    rows=LARGE_ROWS,
    curves=(SFT, LOGO),
    corpus="fairytaleqa",
)

GPU = replace(
    LARGE,
    name="gpu",
    workers=1,
    longbench_window=8192,
    tenth={
        "logodata": (*_FEW["logodata"], "source.join_tokens=8192", "chunking.chunk_tokens=51", *_ON_A_CPU),
        "logotrain": (*_FEW["logotrain"], "samples_per_step=2", "dtype=float32"),
        "logoeval qa": (*_FEW["logoeval qa"], *_ON_A_CPU),
        "logoeval run": (*_FEW["logoeval run"], "ppl.lengths=[512,1024,2048,4096]", *_ON_A_CPU),
        "logoeval niah": (*_FEW["logoeval niah"], *_ON_A_CPU),
    },
)

SCALES = {scale.name: scale for scale in (CPU, GPU, LARGE)}
