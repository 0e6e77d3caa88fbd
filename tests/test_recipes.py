"""Every shipped recipe loads, agrees with the paper's tables and stays inside its model's window."""

from __future__ import annotations

import shutil
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from logodata.common.chat_template import render_chat
from logodata.common.recipes.reading import load_recipe, shipped_recipes
from logodata.common.turn_end import turn_end_ids
from logodata.engines.settings import ModelSettings
from logodata.prompts import ANSWER_TEMPLATE, PromptFormat
from logodata.recipe.settings import BuildRecipe
from logoeval.recipe.settings import EvalRecipe
from logotrain.cli import main
from logotrain.recipe.objectives import (
    DpoSettings,
    LogoSettings,
    LongpoSettings,
    OrpoSettings,
    SftSettings,
    SolopoSettings,
)
from logotrain.recipe.settings import TrainRecipe
from tests.conftest import make_tokenizer

FOLDER = shipped_recipes()
FILES = sorted(FOLDER.rglob("*.yaml"))
every_recipe = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())

WINDOWS = {
    "embedded": 8192,
    "namespace-Pt/Llama-3-8B-Instruct-80K-QLoRA-Merged": 81920,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8192,
    "meta-llama/Llama-2-7b-chat-hf": 4096,
    "yaofu/llama-2-7b-80k": 81920,  # once its config is mended, as the recipe's head says
    "mistralai/Mistral-7B-Instruct-v0.2": 32768,
    "meta-llama/Llama-3.1-8B-Instruct": 131072,
    "Qwen/Qwen3-8B": 40960,
    "Qwen/Qwen2.5-7B-Instruct": 32768,
}
"""``max_position_embeddings`` of the models; the hub is not asked."""


class Row(NamedTuple):
    """A row of the paper's Table 1 that is trained or scaled, with its settings in the paper."""

    average: str
    """LongBench, Table 1."""
    window: int
    """K: positions that training spreads over, or the window without training."""
    loss: tuple[float, float, float] | str | None
    """(beta, gamma, lambda) of LOGO, tokens of SFT, or None for a row that is not trained."""
    num_chunks: int | None
    """N; less than 16 where 8K real tokens do not fit the model's own window; None without data."""


LLAMA_3, LLAMA_2, MISTRAL = (10, 3, 0.1), (3, 0.6, 0.1), (2.5, 0.25, 0.1)

TABLE_1 = {
    "llama3-8k-to-64k-yarn": Row("40.9", 65536, None, None),
    "llama3-8k-to-64k-randpos": Row("36.8", 65536, LLAMA_3, 15),
    "llama3-8k-to-64k-logo": Row("43.9", 65536, LLAMA_3, 15),
    "llama2-4k-to-32k": Row("30.1", 32768, LLAMA_2, 7),
    "llama3-80k-sft-full": Row("41.8", 81920, "sequence", 16),
    "llama3-80k-sft-partial": Row("42.8", 81920, "response", 16),
    "llama3-80k": Row("47.0", 81920, LLAMA_3, 16),
    "llama2-80k": Row("36.1", 81920, LLAMA_2, 16),
    "mistral-32k": Row("40.1", 32768, MISTRAL, 16),
}

FIGURE_6 = {  # M, lambda, thousands of real tokens: LongBench average and PG-19 perplexity at 64K
    (1, 0.1, 8): ("44.3", "10.81"),
    (2, 0.1, 4): ("44.1", "11.20"),
    (2, 1, 8): ("45.7", "7.44"),
    (2, 0.5, 8): ("46.9", "11.84"),
    (2, 0.1, 8): ("47.0", "10.85"),
    (3, 0.1, 4): ("46.1", "11.50"),
    (3, 0, 8): ("47.9", "11.9"),
    (2, 0, 8): ("46.3", "12.0"),
    (3, 0.1, 8): ("out of memory",),
}

OBJECTIVES = {"orpo", "ipo", "solopo", "longpo", "longreward"}
"""Recipes of other papers' losses."""

OTHERS = {"embedded", "llama3.1", "qwen3", "rounds", "study/cpu", "study/gpu", "study/large", *OBJECTIVES}


@cache
def sections(path: Path) -> tuple[BuildRecipe | None, TrainRecipe, EvalRecipe]:
    """All sections of a recipe; what has no training has no data to build."""
    train = load_recipe(TrainRecipe, "train", path)
    build = load_recipe(BuildRecipe, "build", path) if train.epochs else None
    held_out = ["pairs.data=somewhere"] if path.stem in ("embedded", "rounds") else []
    return build, train, load_recipe(EvalRecipe, "eval", path, held_out)


def window(train: TrainRecipe) -> int:
    """The model's window under the recipe's RoPE."""
    return round(WINDOWS[train.model] * (train.rope.factor if train.rope else 1))


def description(path: Path) -> str:
    text = yaml.safe_load(path.read_text(encoding="utf-8"))["description"]
    assert isinstance(text, str)
    return text


def test_each_row_of_table_1_and_point_of_figure_6_has_a_recipe_and_each_recipe_is_one() -> None:
    figure_6 = {f"figure6/m{m}-lambda{weight:g}-{context}k" for m, weight, context in FIGURE_6}
    found = {path.relative_to(FOLDER).with_suffix("").as_posix() for path in FILES}
    assert found == set(TABLE_1) | figure_6 | OTHERS


@every_recipe
def test_it_loads_says_what_it_is_and_sets_one_model(path: Path) -> None:
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert raw["name"] == path.relative_to(FOLDER).with_suffix("").as_posix().replace("/", "-")
    assert len(description(path)) > 40
    build, train, evaluation = sections(path)
    assert {section.model for section in (build, train, evaluation) if section} == {train.model}
    assert evaluation.niah
    assert evaluation.ppl or path.stem == "rounds"


@every_recipe
def test_positions_and_contexts_fit_the_window(path: Path) -> None:
    build, train, evaluation = sections(path)
    if train.positions.target_length is not None:
        assert train.positions.target_length <= window(train)
    if build is not None:
        chunks = build.contexts.num_chunks * (build.chunking.chunk_tokens + 2)  # a separator of at most two tokens
        frame_and_question = 200
        # The model answers unscaled, within its own window.
        assert chunks + frame_and_question + build.generation.max_new_tokens <= WINDOWS[build.model]
    assert evaluation.niah is not None
    assert evaluation.niah.lengths[-1] + evaluation.niah.max_new_tokens <= window(train)
    assert evaluation.ppl is None or evaluation.ppl.lengths[-1] <= window(train)


@pytest.mark.parametrize("name", TABLE_1)
def test_it_agrees_with_table_1(name: str) -> None:
    row, path = TABLE_1[name], FOLDER / f"{name}.yaml"
    build, train, evaluation = sections(path)
    assert row.average in description(path)
    assert window(train) == row.window
    assert evaluation.ppl is not None
    assert evaluation.ppl.lengths == tuple(2**n for n in range(11, 17) if 2**n <= row.window)
    if build is None:
        assert (row.loss, row.num_chunks, train.epochs) == (None, None, 0)
        return
    assert train.positions.target_length == row.window
    assert (build.contexts.num_chunks, build.chunking.chunk_tokens, build.contexts.critical_threshold) == (
        row.num_chunks,
        512,
        6,
    )
    assert (build.evaluator.name, build.evaluator.query, build.generation.preferred) == ("entity", "question", "model")
    if isinstance(train.objective, LogoSettings):
        assert (train.objective.beta, train.objective.gamma, train.objective.sft_weight) == row.loss
        assert train.optimizer.lr == 5e-7
    else:
        assert isinstance(train.objective, SftSettings)
        assert train.objective.tokens == row.loss
    assert 1 + len(build.contexts.mixed_ratios) == 2  # M
    assert (train.lora.rank, train.lora.alpha, train.optimizer.weight_decay) == (32, 16, 0.05)
    assert (train.epochs, train.samples_per_step, train.positions.continuous_share) == (2, 64, 0.9)
    assert train.positions.mode == ("randpos" if "randpos" in name else "mixed")


@pytest.mark.parametrize("point", FIGURE_6)
def test_it_agrees_with_figure_6_and_differs_in_nothing_else(point: tuple[int, float, int]) -> None:
    m, weight, context = point
    path = FOLDER / "figure6" / f"m{m}-lambda{weight:g}-{context}k.yaml"
    assert all(figure in description(path) for figure in FIGURE_6[point])
    build, train, evaluation = sections(path)
    main_build, main_train, main_evaluation = sections(FOLDER / "llama3-80k.yaml")
    assert build is not None
    assert main_build is not None
    contexts = {"num_chunks": context * 1024 // 512, "mixed_ratios": build.contexts.mixed_ratios}
    assert 1 + len(build.contexts.mixed_ratios) == m
    assert build.contexts.mixed_ratios[:1] == main_build.contexts.mixed_ratios[: m - 1]
    assert build == changed(main_build, contexts=changed(main_build.contexts, **contexts))
    assert train == changed(main_train, objective=changed(main_train.objective, sft_weight=float(weight)))
    assert evaluation == main_evaluation


def changed(model: Any, **values: Any) -> Any:
    return model.model_copy(update=values)


def test_the_instruct_tuning_rows_differ_from_logo_by_loss_and_learning_rate() -> None:
    build, train, _ = sections(FOLDER / "llama3-80k.yaml")
    for name, tokens in (("full", "sequence"), ("partial", "response")):
        other_build, other_train, _ = sections(FOLDER / f"llama3-80k-sft-{name}.yaml")
        optimizer = changed(train.optimizer, lr=1e-5)
        assert other_build == build
        assert other_train == changed(train, objective=SftSettings(tokens=tokens), optimizer=optimizer)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["orpo", "ipo"])
def test_recipes_of_losses_differ_from_logo_by_the_loss_alone(name: str) -> None:
    build, train, evaluation = sections(FOLDER / f"{name}.yaml")
    main_build, main_train, main_evaluation = sections(FOLDER / "llama3-80k.yaml")
    assert (build, evaluation) == (main_build, main_evaluation)
    assert train.objective.name == name
    assert changed(train, objective=main_train.objective) == main_train


def test_recipes_with_a_short_prompt_have_their_papers_settings() -> None:
    build, train, _ = sections(FOLDER / "solopo.yaml")
    assert build is not None
    assert train.objective == SolopoSettings(loss=OrpoSettings(preference_weight=0.1), alpha=1)
    assert (build.generation.num_candidates, build.generation.temperature) == (32, 0.85)
    assert (build.contexts.critical_top, build.contexts.num_chunks) == (2, 15)
    _, other, _ = sections(FOLDER / "longpo.yaml")
    assert other.objective == LongpoSettings(beta=0.1, preference_weight=0.01, tokens="sequence")
    assert (other.optimizer.lr, other.optimizer.warmup_ratio, other.epochs, other.samples_per_step) == (5e-7, 0.1, 1, 8)
    for recipe in (train, other):
        assert recipe.positions.mode == "natural"
    assert build.generation.rejected == "critical_wrong"
    other_build, _, _ = sections(FOLDER / "longpo.yaml")
    assert other_build is not None
    assert other_build.generation.rejected == "training"


def test_another_loss_within_solopo_starts_from_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(TrainRecipe, "train", FOLDER / "solopo.yaml", ["objective.loss.name=dpo", "objective.alpha=3"])
    assert recipe.objective == SolopoSettings(loss=DpoSettings(), alpha=3)
    said = "objective.loss.name=dpo starts from its own defaults, dropped: objective.loss.preference_weight=0.1"
    assert said in capsys.readouterr().err


def test_recipes_extend_one_another_wherever_they_are_installed(tmp_path: Path) -> None:
    packaged = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert packaged["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["recipes"] == "logodata/_recipes"
    copy = shutil.copytree(FOLDER, tmp_path / "_recipes")
    for path in FILES:
        assert sections(copy / path.relative_to(FOLDER))[1] == sections(path)[1]


@pytest.mark.parametrize("name", ["llama2", "qwen3"])
def test_chat_templates_frame_a_question_and_end_a_turn(name: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (FOLDER / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    recipe = load_recipe(BuildRecipe, "build", FOLDER / ("llama2-80k.yaml" if name == "llama2" else "qwen3.yaml"))
    assert recipe.chat_template == FOLDER / "templates" / f"{name}.jinja"
    text = tokenizer.decode(PromptFormat(tokenizer, ANSWER_TEMPLATE).encode([], question="Who?").ids)
    if name == "llama2":
        assert text.startswith("<|im_start|>[INST] Read the text")  # the test tokenizer's bos
        assert text.endswith("Question: Who?\nAnswer in one short sentence. [/INST]")
    else:
        assert text.startswith("<|im_start|>user\nRead the text")
        assert text.endswith("sentence.<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert turn_end_ids(tokenizer)[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_template_opens_the_reasoning_of_the_embedded_model_or_closes_it() -> None:
    settings = {"model": "embedded", "chat_template": FOLDER / "templates" / "smollm2-thinking.jinja"}
    for thinks, budget, end in ((True, 8192, "<think>\n"), (False, 0, "<think>\n\n</think>\n\n")):
        given = ModelSettings(**settings, chat_template_args={"enable_thinking": thinks})
        tokenizer = given.load_tokenizer()
        assert render_chat(tokenizer, "Who?") == f"<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n{end}"
        assert given.reasoning(tokenizer, 16384).budget == budget
        assert turn_end_ids(tokenizer)[0] == tokenizer.convert_tokens_to_ids("<|im_end|>")


@every_recipe
def test_it_plans_without_data_and_without_the_hub(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(path)]) == 0
    assert capsys.readouterr().out.strip()


@every_recipe
def test_it_dry_runs_without_data_and_without_the_hub(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(path), "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["train"]["model"] in WINDOWS
