"""The ``build`` section of a recipe. Its defaults are the paper's, except for the rule for critical chunks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from logodata.common.errors import UserError
from logodata.common.recipes.files import find_recipe, nearest_recipes, no_recipe, shipped_recipes
from logodata.common.recipes.reading import RecipeModel, as_overrides, load_recipe
from logodata.common.recipes.types import OrPath, Tokens
from logodata.common.user_files import expand_home
from logodata.contexts.settings import ChunkingSettings, ContextSettings, EvaluatorSettings
from logodata.engines.settings import AdaptedModelSettings
from logodata.judge.settings import JudgeSettings
from logodata.recipe.foreign_names import ENGINE_VALUES, NAMES
from logodata.sources import SourceSettings

PreferredSource = Literal["model", "best_of_n", "guided", "reference", "best_versus_worst"]

RejectedSource = Literal["contexts", "training", "critical_wrong", "none"]


class GenerationSettings(RecipeModel):
    """Where responses come from and how they are decoded."""

    preferred: PreferredSource = "model"
    """The source of preferred responses. ``model`` is the model's greedy answer from the critical chunks (paper).
    ``best_of_n`` tries this answer, then sampled ones, and takes the first that the judge finds right. ``guided`` lets
    the model say the reference in its own words, from critical chunks, question and reference. ``reference`` is the
    reference itself, which a model that would never say it that way learns badly. ``best_versus_worst`` samples answers
    from the training context, which ``judge.grades`` grades: the best one is preferred to the worst (LongReward)."""
    num_candidates: int = Field(default=1, gt=0)
    """The number of preferred responses to try, for ``best_of_n`` and ``guided``. ``best_of_n`` needs at least 2, of
    which the first is greedy. ``guided`` decodes each of four wordings of the hint greedily, then samples. For
    ``best_versus_worst`` it is the number of answers that are graded; LongReward takes 10."""
    rejected: RejectedSource = "contexts"
    """The source of dis-preferred responses. ``contexts`` are the model's greedy answers from irrelevant chunks and
    from each of ``contexts.mixed_ratios`` (paper). ``training`` is its greedy answer from the training context
    (LongPO). ``critical_wrong`` is the first wrong one of the candidates of ``best_of_n``, which saw the critical
    chunks (SoLoPO). These two give one response; ``best_versus_worst`` takes its own. ``none`` writes no dis-preferred
    response: samples are right answers for instruct tuning, or questions that ``logoeval qa`` asks."""
    rejected_by: Literal["adapted", "base"] = "adapted"
    """The model that writes the dis-preferred responses: that of the preferred ones, or ``base``, the model without the
    adapter. In rounds of training the two kinds of responses then grow apart (arXiv 2508.06026). Without an adapter
    both are the same."""
    temperature: float = Field(default=0.7, gt=0)
    """The temperature of the sampled candidates, and of the tries of ``solve``."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """The nucleus of the sampled candidates, and of the tries of ``solve``."""
    max_new_tokens: Tokens = 256
    """The maximum length of every response. A preferred response that reaches it is not kept. Nothing is cut to fit."""
    keep_reasoning: bool = False
    """Keep the reasoning of a model before its answers, in preferred and dis-preferred responses. By default it is left
    out of both, and a response whose reasoning was cut has no answer."""
    group_size: int = Field(default=256, gt=0)
    """The number of questions whose prompts go to the engine together; fewer if contexts or documents are long."""
    cache: Path | Literal["embedded"] | None = None
    """Responses that the same model generated before for the same prompts. ``embedded`` is the cache that comes with
    the project. What is taken from it is counted and named."""

    @model_validator(mode="after")
    def _candidates_need_sampling(self) -> GenerationSettings:
        if self.num_candidates > 1 and self.preferred in ("model", "reference"):
            raise ValueError(
                f"num_candidates={self.num_candidates} has no meaning for preferred={self.preferred!r}: set it to 1"
            )
        if self.num_candidates == 1 and self.preferred == "best_of_n":
            raise ValueError("best_of_n of one is preferred='model': set num_candidates to 2 or more")
        if self.rejected == "critical_wrong" and self.preferred != "best_of_n":
            raise ValueError("rejected='critical_wrong' takes a wrong candidate of preferred='best_of_n'")
        if self.rejected != "contexts" and self.grades_answers:
            raise ValueError(f"rejected={self.rejected!r} has no meaning for preferred='best_versus_worst'")
        if self.rejected_by == "base" and (self.rejected == "critical_wrong" or self.grades_answers):
            raise ValueError("rejected_by='base': the dis-preferred response is one of the same answers")
        if self.rejected_by == "base" and self.rejected == "none":
            raise ValueError("rejected_by='base' has no meaning for rejected='none': leave it out")
        return self

    @property
    def grades_answers(self) -> bool:
        """Whether both responses of a pair are answers to one prompt, the best and the worst by a judge's grades."""
        return self.preferred == "best_versus_worst"

    @property
    def asks_only(self) -> bool:
        """Whether samples are questions with their references, to which no response is generated."""
        return self.preferred == "reference" and self.rejected == "none"

    @property
    def compares_contexts(self) -> bool:
        """Whether there is a dis-preferred response for the irrelevant chunks and for each mix; else there is one."""
        return self.rejected == "contexts" and not self.grades_answers


class SolveSettings(RecipeModel):
    """Which questions are worth asking, by how often the model answers them right from the training context."""

    tries: int = Field(default=8, ge=2)
    """The number of answers that are sampled to each question. One is right if the rules say so, and so does a model
    judge, if there is one."""
    keep: tuple[int, int] = (2, 6)
    """The least and the most right answers of a question that is kept. Ours; published filters keep 1 to 7 of 8, or 2
    to 6. A share of 8 tries has a standard error of up to 0.18."""

    @model_validator(mode="after")
    def _is_a_range(self) -> SolveSettings:
        least, most = self.keep
        if not 0 <= least <= most <= self.tries:
            raise ValueError(f"keep=[{least}, {most}] is no range of 0 to tries={self.tries} right answers")
        return self


ENGINES: Any = {"engine": True, "judge": {"model": {"engine": True}, "grades": {"engine": True}}}
"""The sections of a recipe that decide nothing about a data set."""


class BuildRecipe(AdaptedModelSettings):
    """How preference data are made from long documents."""

    own_model = "logodata build DOCUMENTS --model MODEL, without a recipe, takes the paper's"
    foreign_names = NAMES
    foreign_values = ENGINE_VALUES

    model: Annotated[str, Field(min_length=1), OrPath("embedded")]
    """The model that will be trained and that writes the responses: ``embedded``, a folder, or a hub name."""
    adapter: Path | None = None
    """The folder of a LoRA adapter that writes the responses together with the model, such as RUN/final of the round
    before."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """The seed of contexts and sampled responses."""
    source: SourceSettings
    """The documents and their questions."""
    chunking: ChunkingSettings = ChunkingSettings()
    """How documents are cut into chunks."""
    evaluator: EvaluatorSettings = EvaluatorSettings()
    """How chunks are scored for a question."""
    contexts: ContextSettings = Field(default=ContextSettings(), validate_default=True)
    """How contexts are drawn from chunks."""
    generation: GenerationSettings = GenerationSettings()
    """How responses are generated."""
    solve: SolveSettings | None = None
    """Which questions are asked at all, by how often the model solves them. By default all are."""
    judge: JudgeSettings = JudgeSettings()
    """How responses are judged, and which pairs are kept."""

    @field_validator("contexts")
    @classmethod
    def _scores_have_a_threshold(cls, contexts: ContextSettings, info: ValidationInfo) -> ContextSettings:
        evaluator: EvaluatorSettings | None = info.data.get("evaluator")  # None if it is invalid itself
        if evaluator is None or contexts.critical_threshold is None:
            return contexts
        fault = evaluator.threshold_fault(contexts.critical_threshold)
        if fault is not None:
            raise ValueError(
                f"critical_threshold={contexts.critical_threshold:g} does not go with evaluator.name={evaluator.name}, "
                f"{fault}: set contexts.critical_threshold=null contexts.critical_top=N"
            )
        return contexts

    @model_validator(mode="after")
    def _grades_choose(self) -> Self:
        grades, generation = self.judge.grades, self.generation
        if generation.grades_answers and grades is None:
            raise ValueError(
                "generation.preferred=best_versus_worst needs a judge that grades: set judge.grades.name=MODEL, or "
                "judge.grades={} for the build's own model"
            )
        if grades is not None and not generation.grades_answers:
            raise ValueError("judge.grades has a meaning for generation.preferred=best_versus_worst only")
        if grades is not None and generation.num_candidates < grades.least_graded:
            raise ValueError(
                f"generation.num_candidates={generation.num_candidates} is less than judge.grades.least_graded="
                f"{grades.least_graded}: LongReward grades 10"
            )
        return self

    @property
    def uses_base(self) -> bool:
        """Whether the model without its adapter writes responses, too."""
        return self.adapter is not None and self.generation.rejected_by == "base"

    @model_validator(mode="after")
    def _tries_can_be_judged(self) -> Self:
        if self.solve is not None and not self.judge.enabled:
            raise ValueError("solve counts the answers that the rules find right: it needs judge.enabled=true")
        if self.generation.rejected == "critical_wrong" and not self.judge.enabled:
            raise ValueError(
                "generation.rejected=critical_wrong takes an answer that the rules find wrong: it needs "
                "judge.enabled=true"
            )
        return self

    @model_validator(mode="after")
    def _reasoning_can_be_kept(self) -> Self:
        if self.generation.keep_reasoning and self.engine.kind == "chat":
            raise ValueError("generation.keep_reasoning: a chat server may keep the reasoning apart, or hide it")
        return self

    def binding(self) -> dict[str, Any]:
        """Return the recipe as JSON, without the engines: a build may continue under other engines."""
        return self.model_dump(mode="json", exclude=ENGINES)

    @property
    def needs_references(self) -> bool:
        """Whether a question without a reference answer is of no use."""
        graded = self.generation.grades_answers
        return not graded or self.solve is not None or self.evaluator.query == "question_and_answer"


QUESTIONS_ONLY = (
    "generation.preferred=reference",
    "generation.num_candidates=1",
    "generation.rejected=none",
    "generation.rejected_by=adapted",
    "solve=null",
    "judge.enabled=false",
    "judge.measure=word_share",
    "judge.model=null",
    "judge.grades=null",
)
"""Overrides under which a build generates nothing and keeps every question that has a context and a reference."""

_OF_EMBEDDED_DOCUMENTS = (
    "source.max_documents=null",
    "source.max_questions_per_document=null",
    "source.kinds=null",
    "generation.cache=null",
    "judge.keep_bare_reference=true",
)
"""Overrides that undo the choices of the shipped embedded.yaml for its own documents."""


def load_build_recipe(
    source: str | None,
    file: Path | None,
    model: str | None,
    overrides: Sequence[str],
    *,
    adapter: str | None = None,
    questions_only: bool = False,
) -> BuildRecipe:
    """Read the recipe of a build. ``overrides`` (``key=value``) hold over everything else.

    Args:
        source: Documents, or a recipe that names its documents: a YAML file, or the name of a shipped one.
        file: A recipe for the documents of ``source``. Without ``source`` it names its documents.
        questions_only: Whether :data:`QUESTIONS_ONLY` hold over the recipe.

    Raises:
        UserError: There are no documents, no model or two recipes; or see
            :func:`logodata.common.recipes.reading.load_recipe`.
    """
    chosen = QUESTIONS_ONLY if questions_only else ()
    overrides = [*as_overrides({"model": model or None, "adapter": adapter}), *chosen, *overrides]
    if source is None and file is None:
        raise UserError("no source given", mend="give a recipe.yaml or a file documents.jsonl")
    if source is None or _names_recipe(source):
        if source is not None and file is not None:
            mend = "with --recipe, SOURCE is a .jsonl file"
            raise UserError("two recipes given", where=f"{source}, {file}", mend=mend)
        return load_recipe(BuildRecipe, "build", file if source is None else Path(source), overrides)
    overrides = [*as_overrides({"source.path": source}), *overrides]
    embedded = shipped_recipes() / "embedded.yaml"
    path = file and (find_recipe(file) or file)
    if path is None and model == "embedded":
        path = embedded
    if path is None and not model:
        raise UserError("no model given", mend="add --model NAME, a folder, or 'embedded'")
    if path is not None and path.resolve() == embedded.resolve():
        overrides = [*_OF_EMBEDDED_DOCUMENTS, *overrides]  # a recipe of the user means what it says
    return load_recipe(BuildRecipe, "build", path, overrides)


def _names_recipe(source: str) -> bool:
    """Whether SOURCE is a recipe: a YAML file, or the name of a shipped one. A file of that name comes first."""
    if source.endswith((".yaml", ".yml")):
        return True
    if expand_home(source).exists() or ":" in source:
        return False
    if find_recipe(source):
        return True
    if not Path(source).suffix[1:].isalpha() and nearest_recipes(source):
        raise no_recipe(source)
    return False
