"""The report: whole, escaped, self-contained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.common.files import write_json
from logodata.common.markup import join, raw, tag
from logodata.dataset.samples import read_samples, write_samples
from logoeval.cli import main
from logoeval.compare.compare import compare
from logoeval.recipe.settings import EvalRecipe
from logoeval.report.sections.training import training_section
from logoeval.run import evaluate
from logoeval.session import Session
from logoeval.tasks.needles.settings import NiahSettings
from logoeval.tasks.pairs import PairsSettings
from logoeval.tasks.perplexity import PerplexitySettings
from tests.logoeval.conftest import FakeEngine, write_build
from tests.logoeval.pages import render

EVIL = "<script>alert('mill')</script> \"bridge\" & more. "
VOID = {"meta"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that elements nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def runs(
    tiny_model_dir: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, fake_answer: Any
) -> list[Path]:
    """Two runs of all tasks; documents, responses and a folder's name hold markup."""
    root = tmp_path_factory.mktemp("runs")
    recipe = EvalRecipe(
        model=str(tiny_model_dir),
        niah=NiahSettings(lengths=(700, 800), num_samples=3, haystacks=("noise",), max_new_tokens=6),
        pairs=PairsSettings(data=write_build(root / "heldout", tiny_tokenizer, count=16, text=EVIL), max_new_tokens=6),
        ppl=PerplexitySettings(lengths=(32, 64), num_documents=2),
    )
    folders = [root / "before", root / "after <i>x$1$"]
    for folder, shift in zip(folders, (0, 1), strict=True):

        def answer(request: Any, shift: int = shift) -> Any:
            return fake_answer(replace(request, prompt_ids=(*request.prompt_ids, shift)))

        engine = FakeEngine(answer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Session, "engine", engine)
            evaluate(recipe, ["niah", "pairs", "ppl"], folder)
    return folders


@pytest.fixture
def training(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    folder.mkdir()
    recipe = {
        "objective": {"name": "logo", "beta": 2.5, "gamma": 0.25, "sft_weight": 0.1},
        "optimizer": {"lr": 5e-4},
        "tuning": "lora",
        "lora": {"rank": 16},
        "samples_per_step": 2,
    }
    write_json(folder / "recipe.resolved.json", recipe)
    lines = [json.dumps({"step": step, "loss": 3 - 0.05 * step, "margin": -1 + 0.02 * step}) for step in range(1, 31)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_page_is_whole_escaped_and_self_contained(
    runs: list[Path], training: Path, make_build: Callable[..., Path]
) -> None:
    page = render(compare(runs), data=make_build(name="train-data"), run=training)
    reader = Reader(page)
    assert reader.open == []
    assert not {"script", "i", "b", "em"} & set(reader.tags)
    assert "alert('mill')" in reader.text
    assert "A <i>mill</i>." in reader.text  # a response
    assert "after <i>x$1$" in reader.text  # a label, also inside the figures
    # Nothing is fetched: no address in an attribute or in the style sheet.
    for name, value in reader.attributes:
        assert name not in ("src", "srcset", "action", "onload", "onclick")
        if "href" in name:
            assert value.startswith("#")
    assert not re.search(r"url\((?!#)|@import|https?:", page.replace("&", ""))
    for heading in (
        "Held-out pairs",
        "Three of the questions",
        "How answers go wrong",
        "Needles in a haystack",
        "Perplexity",
        "The training run",
    ):
        assert heading in reader.text
    assert page.count('role="img" aria') == 2 + 1 + 4 + 2 + 2
    assert "mark" in reader.tags
    assert "Of the 16 pairs, 16 were built live, 0 with responses from a cache." in reader.text
    assert "6 built live, 0 with responses from a cache." in reader.text  # the training data
    assert "devices and versions may differ, and stand in the table" in reader.text


def test_command_writes_three_files_with_the_same_numbers(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "reports" / "report.html"
    assert main(["compare", *map(str, runs), "-o", str(out)]) == 0
    record = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    comparison = compare(runs)
    assert [row["metric"]["key"] for row in record["rows"]] == [row.metric.key for row in comparison.rows]
    assert record["rows"][0]["differences"][0]["change"]["value"] == comparison.rows[0].differences[0].change.value
    markdown = out.with_suffix(".md").read_text(encoding="utf-8")
    assert all(row.label in markdown for row in comparison.rows)
    assert "Reward margin" in out.read_text(encoding="utf-8")


def test_a_cache_is_not_called_the_shipped_one(runs: list[Path]) -> None:
    """Any file may be ``generation.cache``."""
    held_out = runs[0].parent / "heldout"
    (file,) = (held_out / "data").glob("*.parquet")
    live = file.read_bytes()
    samples = read_samples(held_out)
    cached = [
        sample.model_copy(update={"chosen": sample.chosen.model_copy(update={"origin": "cache"})}) for sample in samples
    ]
    try:
        write_samples(file, cached)
        page = render(compare(runs))
    finally:
        file.write_bytes(live)
    assert page.count("ended by itself, from a cache") == 3
    assert "shipped" not in page


def test_equal_results_give_an_equal_page(runs: list[Path], training: Path) -> None:
    assert render(compare(runs), run=training) == render(compare(runs), run=training)


def test_shared_documents_are_told(runs: list[Path], make_build: Callable[..., Path]) -> None:
    assert "16 of 16 held-out contexts hold a document" in render(compare(runs), data=runs[0].parent / "heldout")
    assert "None of their contexts holds a document" in render(compare(runs), data=make_build(name="other"))


def test_questions_are_left_out_when_their_folder_is_gone(runs: list[Path]) -> None:
    folder = runs[0].parent / "heldout"
    folder.rename(folder.with_name("moved"))
    try:
        assert "No questions are shown" in render(compare(runs))
    finally:
        folder.with_name("moved").rename(folder)


def test_held_out_figures_of_a_run_are_drawn_into_its_curves(training: Path) -> None:
    without = str(training_section(training).body)
    lines = [json.dumps({"step": step, "loss": 3 - 0.04 * step, "margin": -1 + 0.03 * step}) for step in (0, 15, 30)]
    (training / "validation.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    drawn = str(training_section(training).body)
    assert (drawn.count("points: held out"), without.count("points: held out")) == (2, 0)
    assert drawn.count("<use") >= without.count("<use") + 6  # three marks in each figure


def test_a_run_with_a_margin_under_the_short_prompt_shows_it_as_such(training: Path) -> None:
    path = training / "recipe.resolved.json"
    objective = {"name": "solopo", "loss": {"name": "simpo", "beta": 2.0, "gamma": 0.5}, "alpha": 1}
    write_json(path, {**json.loads(path.read_text()), "objective": objective})
    lines = [json.dumps({"step": step, "loss": 2.0, "short_margin": 0.02 * step}) for step in range(1, 4)]
    (training / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    drawn = str(training_section(training).body)
    assert "objective solopo (loss simpo (beta 2.0, gamma 0.5), alpha 1.0); LoRA" in drawn
    assert "margin under the short prompt, nats per token" in drawn


def test_folders_that_are_not_what_they_should_be(runs: list[Path], tmp_path: Path, training: Path) -> None:
    with pytest.raises(UserError, match="no finished build"):
        render(compare(runs), data=tmp_path)
    (training / "metrics.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="no training step"):
        render(compare(runs), run=training)
    (training / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="give the folder of a logotrain run"):
        render(compare(runs), run=training)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda recipe: [recipe], "damaged: not a JSON object"),
        (lambda recipe: {**recipe, "objective": "logo"}, "damaged: 'objective': unable to extract tag"),
        (lambda recipe: {**recipe, "objective": {"name": "x"}}, "damaged: 'objective': input tag 'x'"),
        (lambda recipe: {**recipe, "optimizer": {"lr": "fast"}}, r"damaged: 'optimizer\.lr': "),
        (lambda recipe: {**recipe, "lora": [16]}, "damaged: 'lora': "),
    ],
)
def test_a_training_recipe_that_is_none(
    runs: list[Path], training: Path, change: Callable[[Any], Any], message: str
) -> None:
    path = training / "recipe.resolved.json"
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    with pytest.raises(UserError, match=f"{message}.*give the folder of a logotrain run"):
        render(compare(runs), run=training)


def test_training_metrics_that_are_no_numbers(runs: list[Path], training: Path) -> None:
    (training / "metrics.jsonl").write_text('{"step": 1, "loss": "low"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: damaged: 'loss': .*give the folder of a logotrain run"):
        render(compare(runs), run=training)


def test_a_report_where_none_can_be(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["compare", *map(str, runs), "-o", str(tmp_path / "file" / "report.html")]) == 2
    assert "file: a file, not a folder" in capsys.readouterr().err


def test_markup_escapes_by_construction() -> None:
    assert tag("p", "a < b", tag("em", "&"), class_="x", data_name='"') == (
        '<p class="x" data-name="&quot;">a &lt; b<em>&amp;</em></p>'
    )
    assert join("<", raw("<hr>")) == "&lt;<hr>"
    # Text that was put together from markup and text by other means is text.
    assert tag("p", "x" + tag("b", "y")) == "<p>x&lt;b&gt;y&lt;/b&gt;</p>"
