"""The commands of rounds. Each is one command of the three programs, which continues by itself what was interrupted."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.recipes.reading import RecipeModel, as_overrides, load_recipe
from logodata.dataset.samples import read_manifest
from logodata.recipe.settings import BuildRecipe
from logodata.sources import SourceSettings, source_fingerprint
from logoeval.recipe.settings import EvalRecipe, load_eval_recipe
from logoeval.tasks.table import find_task
from logotrain.recipe.settings import TrainRecipe

SECTIONS = {"build": "logodata", "train": "logotrain", "eval": "logoeval"}
"""The program that reads each section of a recipe."""


class AllSections(RecipeModel):
    """A whole recipe."""

    build: BuildRecipe
    """How data are built."""
    train: TrainRecipe
    """How the model is trained."""
    eval: EvalRecipe
    """What is measured."""


@dataclass(frozen=True, slots=True)
class Step:
    """A command. ``what`` says what it does, in words."""

    what: str
    program: str
    arguments: tuple[str, ...]
    gpus: int = 1

    @property
    def command(self) -> list[str]:
        """The words of the command, for this Python."""
        module = ["-m", self.program]
        if self.gpus > 1:
            module = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.gpus}", *module]
        return [sys.executable, *module, *self.arguments]

    def __str__(self) -> str:
        """The command as it would be typed."""
        torchrun = ["torchrun", "--standalone", f"--nproc-per-node={self.gpus}", "-m"] if self.gpus > 1 else []
        return shlex.join([*torchrun, self.program, *self.arguments])


@dataclass(frozen=True, slots=True)
class Rounds:
    """All commands of some rounds.

    Args:
        recipe: A recipe with the sections build, train and eval.
        folder: The folder of all rounds.
        count: The most rounds. The source's documents are dealt out to them, so that no question comes twice.
        held_out: A data set that was built, or documents with questions to build one from, which no round trains on.
        model: The model, where it is not the recipe's.
        gpus: The processes of a training run.
        overrides: ``key=value`` by section.
        control: Whether the rounds get a control: one round with as many updates and documents as all of them.
        keep_going: Whether they go on where there are reasons to stop.
    """

    recipe: str
    folder: Path
    count: int
    held_out: str
    model: str | None = None
    gpus: int = 1
    overrides: Mapping[str, Sequence[str]] = field(default_factory=dict)
    control: bool = False
    keep_going: bool = False

    def round(self, number: int) -> Path:
        """Return the folder of a round, from 1."""
        return self.folder / f"round-{number}"

    def measured(self, number: int) -> Path:
        """Return the folder of what was measured after a round; 0 is the model as it was."""
        return self.folder / "base" if number == 0 else self.round(number) / "eval"

    def control_of(self, last: int) -> Path:
        """Return the folder of the control of the rounds up to the last one."""
        return self.folder / f"control-{last}"

    @property
    def held_out_data(self) -> Path:
        """The folder of the held-out data set."""
        return self.folder / "held-out" if self.builds_held_out else Path(self.held_out)

    @property
    def builds_held_out(self) -> bool:
        """Whether the held-out data set is built here, from documents."""
        return not (Path(self.held_out) / "manifest.json").is_file()

    @property
    def report(self) -> Path:
        """The report of all rounds so far."""
        return self.folder / "report.html"

    @property
    def control_report(self) -> Path:
        """The comparison of the last round with the control."""
        return self.folder / "control.html"

    def first_steps(self) -> Iterator[Step]:
        """Yield the commands before the first round."""
        if self.builds_held_out:
            source = (f"source.path={self.held_out}", "source.max_documents=null")
            yield self._step("held-out data", "build", *source, output=self.held_out_data)
        yield self._measure("the model as it is", self.measured(0))

    def steps(self, number: int) -> Iterator[Step]:
        """Yield the commands of a round."""
        folder, last = self.round(number), self.round(number - 1) / "run" / "final"
        goes_on = number > 1
        name = f"round {number} of {self.count}"
        adapter = ("--adapter", str(last)) if goes_on else ()
        yield self._build(f"{name}: data", str(number), *adapter, output=folder / "data")
        start = ("--init-adapter", str(last)) if goes_on else ()
        data = ("--data", str(folder / "data"))
        yield self._step(f"{name}: training", "train", *data, *start, output=folder / "run")
        yield self._measure(f"{name}: measuring", self.measured(number), folder / "run")

    def control_steps(
        self, last: int, updates: object, *, epochs: object, settings: Sequence[str] = ()
    ) -> Iterator[Step]:
        """Yield the commands of the control of the rounds up to the last one.

        Args:
            last: The last round.
            updates: The updates of all these rounds together, with which the training ends. The schedule of its
                learning rate is the recipe's over all of them.
            epochs: So many that the updates come first.
            settings: Further ``key=value`` of the training.
        """
        folder, name = self.control_of(last), "control"
        yield self._build(f"{name}: data", f"1-{last}", output=folder / "data")
        changed = (*settings, f"epochs={epochs}", f"max_steps={updates}")
        yield self._step(f"{name}: training", "train", *changed, "--data", str(folder / "data"), output=folder / "run")
        yield self._measure(f"{name}: measuring", folder / "eval", folder / "run")

    def compare(self, last: int, *, control: bool = False) -> Step:
        """Return the command that reports on all rounds up to the last one, and on their control."""
        runs = [f"{'base' if n == 0 else f'round-{n}'}={self.measured(n)}" for n in range(last + 1)]
        if control:
            runs.append(f"control={self.control_of(last) / 'eval'}")
        shown = ("--data", str(self.round(last) / "data"), "--run", str(self.round(last) / "run"))
        return Step("report", "logoeval", ("compare", *runs, *shown, "-o", str(self.report)))

    def against_control(self, last: int) -> Step:
        """Return the command that compares the last round with the control: the report compares all with the model."""
        runs = (f"control={self.control_of(last) / 'eval'}", f"round-{last}={self.measured(last)}")
        return Step("report on the control", "logoeval", ("compare", *runs, "-o", str(self.control_report)))

    def _build(self, what: str, shards: str, *adapter: str, output: Path) -> Step:
        # In turn: dealt by their ids, few documents would leave rounds with none.
        dealt = ("--shard", f"{shards}/{self.count}", "--deal-in-turn")
        return self._step(what, "build", *dealt, *adapter, output=output)

    def _measure(self, what: str, output: Path, run: Path | None = None) -> Step:
        adapter = ("--adapter", str(run / "final")) if run else ()
        return self._step(what, "eval", "--data", str(self.held_out_data), *adapter, output=output)

    def _step(self, what: str, section: str, *arguments: str, output: Path) -> Step:
        verb = "build" if section == "build" else "run"
        model = ("--model", self.model) if self.model else ()
        words = (verb, self.recipe, *self.overrides.get(section, ()), *model, *arguments, "-o", str(output))
        return Step(what, SECTIONS[section], words, self.gpus if section == "train" else 1)


def by_section(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Return overrides such as ``train.epochs=2`` by section, without its name.

    Raises:
        UserError: One names no section.
    """
    found: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for override in overrides:
        section, dot, rest = override.partition(".")
        if section not in found or not dot:
            mend = "begin it with build., train. or eval., such as train.epochs=2"
            if override.startswith("model="):
                mend = f"give --model {override.removeprefix('model=')}"
            raise UserError("names no section of a recipe", where=override, mend=mend)
        found[section].append(rest)
    return found


def _fingerprint(rounds: Rounds, source: SourceSettings) -> str:
    """Return the fingerprint of the held-out documents."""
    if rounds.builds_held_out:
        return source_fingerprint(source.model_copy(update={"path": rounds.held_out}))
    return read_manifest(rounds.held_out_data).source.sha256


def check_recipe(rounds: Rounds) -> None:
    """Read all sections of the recipe: what is wrong with the last one is told before the first one's hours.

    Raises:
        UserError: A section does not hold what its program reads.
    """
    file, given = Path(rounds.recipe), {"model": rounds.model}
    words = {section: [*rounds.overrides.get(section, ()), *as_overrides(given)] for section in SECTIONS}
    build = load_recipe(BuildRecipe, "build", file, words["build"])
    train = load_recipe(TrainRecipe, "train", file, [*words["train"], f"data.path={rounds.folder}"])
    held_out = {**given, "pairs.data": str(rounds.held_out_data)}
    measured = load_eval_recipe(file, None, held_out, rounds.overrides.get("eval", ()))
    if train.tuning == "full":
        mend = "use train.tuning=lora"
        raise UserError("full tuning leaves no adapter for the next round", where="train.tuning=full", mend=mend)
    if rounds.builds_held_out and build.source.questions is not None:
        mend = "build their data set first, and give its folder: logodata build HELD_OUT source.questions=FILE -o DIR"
        what = "it holds the questions of the training documents, and not those of the held-out ones"
        raise UserError(what, where=f"build.source.questions={build.source.questions}", mend=mend)
    if _fingerprint(rounds, build.source) == source_fingerprint(build.source):
        mend = "give --held-out other documents"
        raise UserError("the rounds are trained on these documents, too", where=rounds.held_out, mend=mend)
    given_adapters = {"build.adapter": build.adapter, "eval.adapter": measured.adapter}
    given_adapters["train.lora.init_adapter"] = train.lora.init_adapter
    for where, adapter in given_adapters.items():
        if adapter is not None:
            mend = "leave it out, or merge it into the model (logotrain merge)"
            raise UserError("rounds begin with the model as it is, without an adapter", where=where, mend=mend)
    for section, engine in (("build", build.engine), ("eval", measured.engine)):
        where = f"{section}.engine.kind={engine.kind}"
        if engine.asks_servers:
            mend = "use transformers or vllm"
            raise UserError("a running server does not know the adapter of a round", where=where, mend=mend)
        if engine.kind != "transformers" and train.lora.train_embeddings is not False:
            mend = "set train.lora.train_embeddings=false, or use transformers"
            raise UserError("vLLM applies no adapter that trains the embedding", where=where, mend=mend)
    if build.generation.rejected == "none":
        mend = "take contexts, or another source of dis-preferred responses"
        raise UserError("rounds are trained on pairs", where="build.generation.rejected=none", mend=mend)
    for task in measured.tasks:
        read = measured.section(task)
        if rounds.builds_held_out and getattr(read, "data", None) == rounds.held_out_data:
            continue  # yet to be built
        list(find_task(task).evaluator.inputs(read))
