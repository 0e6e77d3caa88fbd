"""The commands of the study, in phases of jobs. Each job is one command of the project, which resumes by itself."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from study.rows import BASE, Row
from study.scale import Scale


@dataclass(frozen=True, slots=True)
class Job:
    """A command. ``name`` is the folder that it writes, relative to the folder of the study."""

    name: str
    program: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command line, to be typed in the root of the repository."""
        return shlex.join([self.program, *self.arguments])


_QUESTIONS_ONLY = (
    "judge.enabled=false",
    "generation.preferred=reference",
    "generation.num_candidates=1",
    "contexts.mixed_ratios=[]",
)
"""Overrides for a data set whose questions are only asked. Each sample needs one response of the model at least."""


@dataclass(frozen=True, slots=True)
class Study:
    """All commands of a study at one scale.

    Args:
        scale: the scale.
        folder: folder of all results.
        cache: file of responses; None generates every response.
        longbench: LongBench's data, of which the rows that fit are measured; None leaves LongBench out.
        extra: overrides of sizes for a trial, by program.
    """

    scale: Scale
    folder: Path
    cache: Path | None = None
    longbench: Path | None = None
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def is_trial(self) -> bool:
        """Whether the study is a trial, too small to say anything about the methods."""
        return bool(self.extra)

    @property
    def command(self) -> str:
        """The command that runs the whole study."""
        given = ["--fairytaleqa DIR"] * (self.scale.corpus is not None) + ["--tenth"] * self.is_trial
        arguments = f" EVIDENCE_ARGS={shlex.quote(' '.join(given))}" if given else ""
        return f"make evidence SCALE={self.scale.name}{arguments}"

    def documents(self, name: str) -> Path:
        """Return the file of the documents of a split."""
        return self.folder / "documents" / f"{name}.jsonl"

    def data(self, name: str) -> Path:
        """Return the folder of a data set."""
        return self.folder / "data" / name

    def run(self, row: Row, seed: int, rate: float | None) -> Path:
        """Return the folder of a training run."""
        tail = "" if rate is None else f"-lr{rate:g}"
        return self.folder / "runs" / f"{row.name}{tail}-seed{seed}"

    def measured(self, row: Row, seed: int) -> Path:
        """Return the folder of the measurements of a row."""
        return self.folder / "eval" / self._named(row, seed)

    def asked(self, row: Row, seed: int) -> Path:
        """Return the folder of a row's answers to the fresh questions."""
        return self.folder / "fresh" / self._named(row, seed)

    def _named(self, row: Row, seed: int) -> str:
        return row.name if row.is_untrained else f"{row.name}-seed{seed}"

    def seeds(self, row: Row) -> tuple[int, ...]:
        """Return the seeds with which a row is trained."""
        return self.scale.seeds if (row.main or row.replicated) and not row.is_untrained else self.scale.seeds[:1]

    def first_builds(self) -> list[Job]:
        """Return the first builds, whose responses the later builds reuse."""
        # Where pairs are made of few of the held-out questions, the others need no preferred response of the model.
        unjudged = _QUESTIONS_ONLY if self.scale.pair_questions else ("judge.enabled=false",)
        return [
            self._build("train", "train"),
            self._build("heldout", "heldout", self._asked(self.scale.heldout_questions), *unjudged),
            self._build("validation", "validation", self._asked(self.scale.validation_questions), *unjudged),
        ]

    def beginning(self) -> list[list[Job]]:
        """Return chains of jobs: the build of the training data, and beside it all that needs none of them."""
        train, *asked = self.first_builds()
        first, base = self.scale.seeds[0], self.scale.row(BASE)
        others = [job for job in self.later_builds() if job not in self._training_data.values()]
        return [[train], [*asked, *others, self._validate(base, first, None), *self._row(base, first, None)]]

    def later_builds(self) -> list[Job]:
        """Return the builds from the same documents with other settings, and the fresh questions."""
        pair_questions = self.scale.pair_questions or self.scale.heldout_questions
        return [
            *(
                self._training_data[name]
                for name in dict.fromkeys(one.data for one in self.scale.rows)
                if name != "train"
            ),
            self._build("heldout-pairs", "heldout", self._asked(pair_questions), responses="heldout"),
            *([self._build("fresh", "fresh", *_QUESTIONS_ONLY)] if self.has_fresh_questions else []),
        ]

    @property
    def _training_data(self) -> dict[str, Job]:
        """The builds of training data beside the first one, by name."""
        unjudged = (self._asked(2), "judge.enabled=false")
        fused = ("evaluator.name=fused", "contexts.critical_threshold=null")
        return {
            "train-unjudged": self._build("train-unjudged", "train", *unjudged, responses="train"),
            "train-fused": self._build("train-fused", "train", *fused, responses="train"),
            "train-kinds": self._build(
                "train-kinds", "train-kinds", "source.kinds=[single_detail,multi_detail]", responses="train"
            ),
        }

    @property
    def has_fresh_questions(self) -> bool:
        """Whether some rows are asked a second set of questions."""
        return any(one.replicated for one in self.scale.rows)

    def builds(self) -> list[str]:
        """Return the names of the data sets."""
        return [job.name.removeprefix("data/") for job in (*self.first_builds(), *self.later_builds())]

    def _asked(self, number: int) -> str:
        return f"source.max_questions_per_document={number}"

    def _build(self, name: str, documents: str, *overrides: str, responses: str | None = None) -> Job:
        cache = self.cache or (self.data(responses) / "work" / "responses.jsonl" if responses else None)
        reuse = () if cache is None else (f"generation.cache={cache}",)
        folder = self.data(name)
        return self._job(
            "logodata",
            folder,
            "build",
            str(self.scale.recipe),
            f"source.path={self.documents(documents)}",
            *overrides,
            *reuse,
            *self.extra.get("logodata", ()),
        )

    def pilots(self) -> list[Job]:
        """Return the trainings of every method at every learning rate, with one seed."""
        return _run_by("logotrain", self.tuning())

    def validations(self) -> list[Job]:
        """Return the jobs that ask the validation questions of the base model and of every pilot."""
        return _run_by("logoeval", self.tuning())

    def tuning(self) -> list[list[Job]]:
        """Return chains of jobs: the validation of the base model, and each pilot followed by its validation."""
        base = self._validate(self.scale.row(BASE), self.scale.seeds[0], None)
        return [[base], *(self._pilot(tuned, rate) for tuned, rate in self.tried())]

    def methods(self, chosen_rates: Callable[[], Mapping[str, float]]) -> list[Iterator[list[Job]]]:
        """Return chains of jobs for each method that has a learning rate of its own.

        They are its pilots, its row with the first seed, its curve over training, and the settings that take its rate
        and train on the same data. ``chosen_rates`` is called after the pilots. So what a pilot wrote is used at once,
        and an interruption costs the trainings of one method at most. The methods of the curves come first, because
        most claims are about them.
        """
        tuned = [one for one in self.scale.rows if one.is_tuned]
        return [self._method(one, chosen_rates) for one in sorted(tuned, key=self._has_no_curve)]

    def _method(self, tuned: Row, chosen_rates: Callable[[], Mapping[str, float]]) -> Iterator[list[Job]]:
        yield from (self._pilot(tuned, rate) for other, rate in self.tried() if other == tuned)
        rates = chosen_rates()
        yield self._row(tuned, self.scale.seeds[0], self.rate(tuned, rates))
        yield from (self._curve(one, rates) for one in self._measured_over_training() if one == tuned)
        settings = [one for one in self.scale.rows if one.rate_of == tuned.name and one.data == tuned.data]
        yield from (self._row(one, self.scale.seeds[0], self.rate(one, rates)) for one in settings)

    def _pilot(self, tuned: Row, rate: float) -> list[Job]:
        first = self.scale.seeds[0]
        return [self._train(tuned, first, rate), self._validate(tuned, first, rate)]

    def _has_no_curve(self, one: Row) -> bool:
        return one.name not in self.scale.curves

    def _validate(self, asked: Row, seed: int, rate: float | None) -> Job:
        return self._ask(asked, seed, rate, "validation", self.validated(asked, rate))

    def _ask(self, asked: Row, seed: int, rate: float | None, data: str, folder: Path) -> Job:
        return self._job(
            "logoeval",
            folder,
            "qa",
            "--recipe",
            str(self.scale.recipe),
            *self._adapter(asked, seed, rate),
            "--data",
            str(self.data(data)),
            "qa.max_new_tokens=32",
            *self.extra.get("logoeval qa", ()),
        )

    def validated(self, tuned: Row, rate: float | None) -> Path:
        """Return the folder of a pilot's validation; without a rate, of the base model's."""
        return self.folder / "validation" / (tuned.name if rate is None else f"{tuned.name}-lr{rate:g}")

    def tried(self) -> list[tuple[Row, float]]:
        """Return the pairs of method and learning rate that are tried."""
        return [
            (tuned, rate)
            for tuned in self.scale.rows
            if tuned.is_tuned
            for rate in (*self.scale.rates, *tuned.edge_rates)
        ]

    def trainings(self, rates: Mapping[str, float]) -> list[Job]:
        """Return the trainings that the comparison needs and that are not among the pilots."""
        piloted = {job.name for job in self.pilots()}
        return [job for job in _run_by("logotrain", self.rows(rates)) if job.name not in piloted]

    def measurements(self, rates: Mapping[str, float]) -> list[Job]:
        """Return the measurements of every row and seed: held-out questions and pairs, needles, perplexity, and for
        some rows fresh questions."""
        return _run_by("logoeval", self.rows(rates))

    def rows(self, rates: Mapping[str, float]) -> list[list[Job]]:
        """Return a chain of jobs for every row and seed: the training, if there is one, and the measurements.

        The training may be a pilot. All rows with the first seed come before those with the other seeds, of which
        come first those of the curves, because most claims are about them.
        """
        trained = [(seed, one) for seed in self.scale.seeds for one in self.scale.rows if seed in self.seeds(one)]
        trained.sort(key=lambda it: it[0] != self.scale.seeds[0] and self._has_no_curve(it[1]))
        return [self._row(one, seed, self.rate(one, rates)) for seed, one in trained]

    def _row(self, one: Row, seed: int, rate: float | None) -> list[Job]:
        chain = [] if one.overrides is None else [self._train(one, seed, rate)]
        chain.append(self._measure(one, seed, rate))
        if one.replicated:
            chain.append(self._ask(one, seed, rate, "fresh", self.asked(one, seed)))
        return chain

    def rate(self, trained: Row, rates: Mapping[str, float]) -> float | None:
        """Return the learning rate of a row, the middle one until one is chosen. None if nothing is trained."""
        middle = sorted(self.scale.rates)[len(self.scale.rates) // 2]
        return None if trained.is_untrained else rates.get(trained.rate_of or trained.name, middle)

    def _train(self, trained: Row, seed: int, rate: float | None) -> Job:
        assert trained.overrides is not None
        folder = self.run(trained, seed, rate)
        data = () if trained.is_untrained else ("--data", str(self.data(trained.data)))
        rated = () if rate is None else (f"optimizer.lr={rate:g}",)
        return self._job(
            "logotrain",
            folder,
            "run",
            str(self.scale.recipe),
            *data,
            *trained.overrides,
            *rated,
            f"seed={seed}",
            *self.extra.get("logotrain", ()),
        )

    def _measure(self, measured: Row, seed: int, rate: float | None) -> Job:
        folder = self.measured(measured, seed)
        return self._job(
            "logoeval",
            folder,
            "run",
            str(self.scale.recipe),
            *self._adapter(measured, seed, rate),
            f"qa={{data: {self.data('heldout')}, max_new_tokens: 32}}",
            f"pairs={{data: {self.data('heldout-pairs')}, max_new_tokens: 32}}",
            *(() if measured.main else ("niah=null",)),
            *self.extra.get("logoeval run", ()),
        )

    def _adapter(self, measured: Row, seed: int, rate: float | None) -> tuple[str, ...]:
        return () if measured.overrides is None else ("--adapter", str(self.run(measured, seed, rate) / "final"))

    def curves(self, rates: Mapping[str, float]) -> list[list[Job]]:
        """Return chains of jobs: the trainings whose checkpoints are measured, each with that, and LongBench if its
        data are given."""
        chains = [self._curve(one, rates) for one in self._measured_over_training()]
        return [*chains, *([job] for job in self._longbench(rates))]

    def _measured_over_training(self) -> list[Row]:
        return [self.scale.row(name) for name in self.scale.curves]

    def curve(self, name: str) -> Path:
        """Return the folder of a curve."""
        return self.folder / "curves" / name

    def _curve(self, trained: Row, rates: Mapping[str, float]) -> list[Job]:
        """The training of a row and the measurement of its checkpoints."""
        folder, seed, rate = self.curve(trained.name), self.scale.seeds[0], self.rate(trained, rates)
        task = self.scale.curve_task
        over = {"niah": ("--retrieval",), "qa": ("--data", str(self.data("validation")), "qa.max_new_tokens=32")}
        measure = self._job(
            "logoeval",
            folder,
            task,
            "--recipe",
            str(self.scale.recipe),
            *over[task],
            "--checkpoints",
            str(self.run(trained, seed, rate) / "checkpoints"),
            *self.scale.curve,
            *self.extra.get(f"logoeval {task}", ()),
        )
        return [self._train(trained, seed, rate), measure]

    def _longbench(self, rates: Mapping[str, float]) -> Iterator[Job]:
        if self.longbench is None:
            return
        for name in (BASE, *self.scale.curves):
            measured, seed = self.scale.row(name), self.scale.seeds[0]
            folder = self.folder / "longbench" / name
            yield self._job(
                "logoeval",
                folder,
                "longbench",
                "--recipe",
                str(self.scale.recipe),
                *self._adapter(measured, seed, self.rate(measured, rates)),
                "--data",
                str(self.longbench),
                f"engine.max_model_len={self.scale.longbench_window}",
            )

    def _job(self, program: str, folder: Path, *arguments: str) -> Job:
        name = folder.relative_to(self.folder).as_posix()
        return Job(name, program, (*arguments, "-o", str(folder)))


def _run_by(program: str, chains: Iterable[list[Job]]) -> list[Job]:
    return [job for chain in chains for job in chain if job.program == program]
