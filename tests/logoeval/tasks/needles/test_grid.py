"""The grid of lengths and depths: settings, variants, haystacks, what prompts share, tables and maps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, GenerationResult
from logodata.prompts import encode_text
from logoeval.cli import main
from logoeval.compare.compare import compare
from logoeval.intervals import is_cell
from logoeval.recipe.settings import EvalRecipe
from logoeval.report import figures
from logoeval.report.measures import markdown_table
from logoeval.run import evaluate
from logoeval.session import Session
from logoeval.tasks.needles.haystacks import Haystack
from logoeval.tasks.needles.placement import NiahSample, SampleBuilder
from logoeval.tasks.needles.scores import depth_scores
from logoeval.tasks.needles.settings import NiahSettings
from logoeval.tasks.needles.task import build_samples, shared_prefix_tokens
from logoeval.tasks.needles.variants import NEEDLE
from logoeval.tasks.texts import NOISE_LINE
from tests.logoeval.conftest import FakeEngine
from tests.logoeval.pages import render

DEPTHS = (0, 22, 44, 66, 88)
GRID = NiahSettings(
    variant="single", lengths=(700, 900), num_samples=2, haystacks=("noise", "essay"), max_new_tokens=12
)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("512-1024/256", (512, 768, 1024)),
        ("8K-88K/0.5K", tuple(range(8192, 88 * 1024 + 1, 512))),
        ("1.5k-2K/512", (1536, 2048)),
        ("4096-4096/1", (4096,)),
    ],
)
def test_a_range_of_lengths(text: str, lengths: tuple[int, ...]) -> None:
    assert NiahSettings.model_validate({"lengths": text}).lengths == lengths


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lengths": "8K-88K"}, "is no range: write START-STOP/STEP"),
        ({"lengths": "1K-2K/0.3333K"}, "not a whole number of tokens"),
        ({"lengths": "1000-2048/512"}, "steps of 512 do not lead from 1000 to 2048"),
        ({"lengths": "2K-1K/512"}, "do not lead"),
        ({"lengths": "1K-2K/0"}, "do not lead"),
        ({"depths": [0, 50]}, "multivalue draws depths at random"),
        ({"variant": "single", "depths": []}, "single needs depths"),
        ({"variant": "single", "depths": [101]}, "less than or equal to 100"),
        ({"variant": "single", "depths": [5, 5]}, "must not repeat"),
        ({"variant": "single", "num_values": 4}, "single hides one value"),
        ({"variant": "shared_answer", "num_values": 1}, "2 to 8 sentences"),
        ({"variant": "double"}, "'multivalue', 'single' or 'shared_answer'"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        NiahSettings.model_validate(values)


def test_what_a_variant_takes_by_default() -> None:
    found = {
        variant: (settings.num_values, settings.depths)
        for variant in ("multivalue", "single", "shared_answer")
        for settings in [NiahSettings.model_validate({"variant": variant, "haystacks": "distractors"})]
    }
    assert found == {"multivalue": (4, ()), "single": (1, DEPTHS), "shared_answer": (2, ())}


def builder(tokenizer: Any, haystack: str | Haystack, variant: Any = "single", num_values: int = 1) -> SampleBuilder:
    text = Haystack(haystack) if isinstance(haystack, str) else haystack
    return SampleBuilder(tokenizer, text, seed=0, num_values=num_values, variant=variant)


def context(tokenizer: Any, sample: NiahSample) -> str:
    """The text between the instruction and the question."""
    text: str = tokenizer.decode(sample.prompt_ids)
    return re.split(r"\nWhat is |\nWhat are ", text.split("afterwards.\n", 1)[1])[0]


def test_single_prompt_is_rulers_in_the_singular(tiny_tokenizer: Any) -> None:
    sample = builder(tiny_tokenizer, "noise").build(1200, 0, 44)
    lines = context(tiny_tokenizer, sample).split("\n")
    (value,), count = sample.values, len(lines) - 1
    needle = NEEDLE.format(key=sample.key, value=value)
    assert lines.index(needle) == count * 44 // 100
    assert lines.count(NOISE_LINE) == count
    assert sample.needles == (needle,)
    assert tiny_tokenizer.decode(sample.prompt_ids) == (
        "<|im_start|>user\nA special magic number is hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the number afterwards.\n{chr(10).join(lines)}\nWhat is the special magic number for "
        f"{sample.key} mentioned in the provided text?<|im_end|>\n<|im_start|>assistant\n The special magic number for "
        f"{sample.key} mentioned in the provided text is"
    )


@pytest.mark.parametrize("name", ["noise", "essay", "distractors"])
def test_a_text_is_shared_by_all_cells_and_numbers_are_not(tiny_tokenizer: Any, name: str) -> None:
    haystack = Haystack(name)
    build = builder(tiny_tokenizer, haystack).build
    cells = {(length, depth): build(length, 0, depth) for length in (700, 1000) for depth in DEPTHS}
    assert all(len(sample.prompt_ids) <= length for (length, _), sample in cells.items())
    texts = {
        cell: context(tiny_tokenizer, sample).replace(sample.needles[0], "").split() for cell, sample in cells.items()
    }
    longest = max(texts.values(), key=len)
    assert all(longest[: len(words)] == words for words in texts.values())
    assert len({sample.values for sample in cells.values()}) == len(cells)
    assert len({sample.cluster for sample in cells.values()}) == (len(cells) if name == "noise" else 1)
    if name != "noise":
        assert build(700, 1, 88).cluster != cells[700, 88].cluster
        assert context(tiny_tokenizer, build(700, 1, 88))[:200] != context(tiny_tokenizer, build(700, 0, 88))[:200]


@pytest.mark.parametrize("variant", ["multivalue", "shared_answer"])
def test_several_needles_have_a_text_of_their_own_in_each_prompt(tiny_tokenizer: Any, variant: str) -> None:
    build = builder(tiny_tokenizer, "essay", variant, 2).build
    samples = [build(length, index) for length in (700, 1000) for index in range(3)]
    texts = []
    for sample in samples:
        text = context(tiny_tokenizer, sample)
        for needle in sample.needles:
            text = text.replace(needle, "")
        texts.append(text)
    beginnings = {" ".join(text.split()[:8]) for text in texts}
    assert len(beginnings) == len({sample.cluster for sample in samples}) == len(samples)


@pytest.mark.parametrize("name", ["essay", "distractors"])
def test_one_more_sentence_would_not_fit(tiny_tokenizer: Any, name: str) -> None:
    haystack = Haystack(name)
    for depth in DEPTHS:
        sample = builder(tiny_tokenizer, haystack).build(1000, 3, depth)
        words = context(tiny_tokenizer, sample).replace(sample.needles[0], "").split()
        unit = next(unit for unit in haystack.units if words[: len(unit.split())] == unit.split())
        start, count = haystack.units.index(unit), 0
        while sum(len(text.split()) for text in haystack.take(start, count)) < len(words):
            count += 1
        assert " ".join(haystack.take(start, count)).split() == words  # whole units
        following = encode_text(tiny_tokenizer, haystack.joiner + haystack.take(start + count, 1)[0])
        assert 1000 - len(following) < len(sample.prompt_ids) <= 1000


def test_shared_answer_has_one_question_and_a_part_in_each_sentence(tiny_tokenizer: Any) -> None:
    build, orders = builder(tiny_tokenizer, "essay", "shared_answer", 2).build, set()
    for index in range(12):
        sample = build(800, index)
        text = tiny_tokenizer.decode(sample.prompt_ids)
        assert all(text.count(needle) == 1 for needle in sample.needles)
        assert sorted(text.find(needle) for needle in sample.needles) == [text.find(n) for n in sample.needles]
        assert all(value in needle for value, needle in zip(sample.values, sample.needles, strict=True))
        assert text.count(f"What is the whole magic combination for {sample.key} ") == 1
        orders.add(tuple(needle.split()[1] for needle in sample.needles))
    assert orders == {("first", "second"), ("second", "first")}


def test_no_distractor_answers_the_question(tiny_tokenizer: Any) -> None:
    haystack = Haystack("distractors")
    for index in range(20):
        sample = builder(tiny_tokenizer, haystack, "multivalue", 4).build(700, index)
        assert not [unit for unit in haystack.units if f"for {sample.key} is" in unit]
        assert not haystack.numbers & set(sample.values)
    # A number that the text holds already is drawn again, whatever the text.
    haystack.numbers = frozenset(sample.values)
    assert not set(builder(tiny_tokenizer, haystack, "multivalue", 4).build(700, 19).values) & set(sample.values)


def num_tree_nodes(prompts: Sequence[tuple[int, ...]]) -> int:
    return len({prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)})


def test_shared_tokens_are_those_a_prefix_tree_saves(tiny_tokenizer: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        prompts = [tuple(rng.integers(3, size=rng.integers(1, 8)).tolist()) for _ in range(15)]
        assert shared_prefix_tokens(prompts) == sum(map(len, prompts)) - num_tree_nodes(prompts)
    build = builder(tiny_tokenizer, "essay").build
    grid = [build(length, 0, depth).prompt_ids for length in (700, 800, 900) for depth in DEPTHS]
    total = sum(map(len, grid))
    assert shared_prefix_tokens(grid) == total - num_tree_nodes(grid)
    assert shared_prefix_tokens(grid) > 0.3 * total


def test_recall_by_fifths_of_the_text() -> None:
    assert depth_scores([0, 19, 20, 100], [True, False, True, False]) == {
        "recall@0": 0.5,
        "recall@20": 1.0,
        "recall@80": 0.0,
    }


class Seer(FakeEngine):
    """Finds needles that lie ``depth`` percent deep at least."""

    def __init__(self, tokenizer: Any, depth: int, limit: int | None = None) -> None:
        def answer(request: GenerationRequest) -> GenerationResult:
            text = tokenizer.decode(request.prompt_ids)
            found = re.findall(r"One of the special magic numbers for \S+ is: (\d+)", text)
            deep = int(request.id.split("-")[4]) >= depth  # niah-single-HAYSTACK-LENGTH-DEPTH-INDEX
            return GenerationResult(request.id, tuple(encode_text(tokenizer, found[0] if deep else "None.")), "stop")

        super().__init__(answer, limit)


class ForwardSeer(Seer):
    """The same in the order it was asked."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Any:
        return super().generate(requests[::-1])


@pytest.fixture
def measure(
    tiny_model_dir: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path, FakeEngine], Any]:
    def run(folder: Path, engine: FakeEngine) -> Any:
        monkeypatch.setattr(Session, "engine", engine)
        return evaluate(EvalRecipe(model=str(tiny_model_dir), niah=GRID), ["niah"], folder).tasks["niah"]

    return run


def test_means_by_length_depth_and_cell(measure: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    result = measure(tmp_path, Seer(tiny_tokenizer, 50))
    recall = {tuple(row.slice.items()): row for row in result.summary if row.metric == "recall"}
    assert len(recall) == 1 + 4 + 2 + 10 + 20
    by_depth = [recall[("haystack", "essay"), ("depth", depth)] for depth in DEPTHS]
    assert [row.value for row in by_depth] == [0, 0, 0, 1, 1]
    assert {row.num_samples for row in by_depth} == {4}
    assert recall[("haystack", "noise"), ("length", 900)].num_samples == 10
    cell = recall[("haystack", "noise"), ("length", 900), ("depth", 88)]
    assert (cell.value, cell.low, cell.high, cell.num_samples) == (1, 1, 1, 2)
    assert recall[()].value == pytest.approx(0.4)
    assert [note for note in result.notes if "prompt tokens" in note]
    assert result.settings["depths"] == list(DEPTHS)
    assert result.settings["num_values"] == 1


def test_intervals_are_over_independent_texts(measure: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    for name, depth in (("before", 50), ("after", 30)):
        measure(tmp_path / name, Seer(tiny_tokenizer, depth))
    comparison = compare([tmp_path / "before", tmp_path / "after"])
    rows = {str(row.slice): row for row in comparison.rows if row.metric.key == "recall"}
    assert {name: rows[str({"haystack": name})].num_clusters for name in ("noise", "essay")} == {
        "noise": 20,
        "essay": 2,
    }
    # Two texts, each found in the same cells: 20 prompts are no 20 pieces of evidence.
    assert rows[str({"haystack": "essay"})].num_samples == 20
    assert rows[str({"haystack": "essay"})].differences[0].verdict == "too few to tell"
    assert rows[str({"haystack": "noise"})].differences[0].verdict == "rose"
    assert rows["{}"].num_clusters == 22


def test_neither_order_nor_an_interruption_changes_results(measure: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    whole = measure(tmp_path / "whole", Seer(tiny_tokenizer, 50))
    assert measure(tmp_path / "forward", ForwardSeer(tiny_tokenizer, 50)).samples == whole.samples
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "halved", Seer(tiny_tokenizer, 50, limit=17))
    rest = Seer(tiny_tokenizer, 50)
    resumed = measure(tmp_path / "halved", rest)
    assert rest.answered == len(whole.samples) - 17
    assert (resumed.samples, resumed.summary) == (whole.samples, whole.summary)


def test_maps_stand_side_by_side_with_their_difference(measure: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    for name, depth in (("before", 50), ("after", 30)):
        measure(tmp_path / name, Seer(tiny_tokenizer, depth))
    comparison = compare([tmp_path / "before", tmp_path / "after"])
    page = render(comparison)
    assert page.count('role="img" aria') == 4
    drawn = re.findall(r">(\d+|-)</text>", page)
    assert drawn.count("100") == 2 * 2 * (2 + 3)  # haystacks, lengths, depths
    assert drawn.count("0") == 2 * 2 * (3 + 2)
    row = next(row for row in comparison.rows if row.slice == {"haystack": "noise"})
    assert row.differences[0].change.value == pytest.approx(0.2)
    assert "Mean: before 40.0 %; after 60.0 %, difference +20.0 [" in page
    # Cells have their place in the maps and in the JSON record, not in tables.
    cells = [row for row in comparison.rows if is_cell(row.slice)]
    assert len(cells) == 20
    assert not [row for row in cells if row.label in page or row.label in markdown_table(comparison)]


def test_a_wide_map_shows_shades_and_some_lengths_only() -> None:
    lengths = [str(length) for length in range(8192, 90113, 512)]
    drawing = figures.heat_map("run", ["0 %", "22 %"], lengths, np.full((2, 161), 0.37), row_label="depth")
    assert not re.search(r">37<", drawing)
    assert 3 <= sum(f">{length}<" in drawing for length in lengths) <= 6
    assert ">100 %<" in drawing


def test_lengths_beyond_the_window_are_named_before_anything_runs(tiny_model_dir: Path) -> None:
    settings = GRID.model_copy(update={"lengths": (700, 4096)})
    recipe = EvalRecipe(model=str(tiny_model_dir), niah=settings)
    with pytest.raises(UserError, match=r"the longest, 4096 tokens, .*needs 4108 positions, the model has 2048"):
        build_samples(settings, Session(recipe))
    settings = GRID.model_copy(update={"lengths": (700, 1000)})
    engine = recipe.engine.model_copy(update={"max_model_len": 1000})
    with pytest.raises(UserError, match=r"needs 1012 positions, engine\.max_model_len is 1000"):
        build_samples(settings, Session(recipe.model_copy(update={"niah": settings, "engine": engine})))


def test_command_line(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = ["niah.variant=single", "niah.lengths=700-800/50", "niah.depths=[10,90]", "niah.haystacks=noise"]
    common = ["niah", "--model", str(tiny_model_dir), "niah.num_samples=1", "niah.max_new_tokens=4"]
    assert main([*common, *single, "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "noise, depth 10 %" in shown
    assert "700 tokens, depth" not in shown
    result = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["tasks"]["niah"]
    assert [sample["id"] for sample in result["samples"]][:3] == [
        "niah-single-noise-700-10-0",
        "niah-single-noise-700-90-0",
        "niah-single-noise-750-10-0",
    ]
    assert main([*common, "niah.lengths=1K-9K/1K", "-o", str(tmp_path / "x")]) == 2
    assert "the longest, 9216 tokens" in capsys.readouterr().err
    assert main([*common, "niah.lengths=1K to 9K", "-o", str(tmp_path / "x")]) == 2
    assert "START-STOP/STEP" in capsys.readouterr().err
