"""An evaluation from recipe to results.json: resumed, skipped, refused; and the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.dataset.samples import read_samples, sample_files, write_samples
from logoeval.cli import main
from logoeval.recipe.settings import EvalRecipe, load_eval_recipe, with_begun_dtype
from logoeval.records import Results, data_fingerprint, files_fingerprint, read_results
from logoeval.run import evaluate
from logoeval.session import Session
from logoeval.tasks.needles.settings import NiahSettings
from logoeval.tasks.pairs import PairsSettings
from logoeval.tasks.perplexity import PerplexitySettings
from tests.logoeval.conftest import FakeEngine

TASKS = ("niah", "pairs", "ppl")


@pytest.fixture
def recipe(tiny_model_dir: Path, make_build: Callable[..., Path]) -> EvalRecipe:
    return EvalRecipe(
        model=str(tiny_model_dir),
        niah=NiahSettings(lengths=(700,), num_samples=4, haystacks=("noise",), max_new_tokens=6),
        pairs=PairsSettings(data=make_build(), max_new_tokens=6),
        ppl=PerplexitySettings(lengths=(32, 64), num_documents=2),
    )


def comparable(results: Results) -> dict[str, Any]:
    """Everything but when it was done and how long it took."""
    content = results.model_dump()
    for task in content["tasks"].values():
        task["provenance"] = {key: value for key, value in task["provenance"].items() if key not in ("date", "seconds")}
    return content


def test_all_tasks_with_the_transformers_engine(recipe: EvalRecipe, tmp_path: Path) -> None:
    results = evaluate(recipe, TASKS, tmp_path / "out")
    assert read_results(tmp_path / "out") == results
    assert set(results.tasks) == set(TASKS)
    assert {task: len(result.samples) for task, result in results.tasks.items()} == {"niah": 4, "pairs": 6, "ppl": 2}
    assert results.tasks["niah"].provenance.engine.startswith("transformers ")
    assert results.tasks["ppl"].provenance.engine is None
    assert results.tasks["pairs"].sources == {"data": str(recipe.pairs.data.resolve())}
    for result in results.tasks.values():
        several = [row for row in result.summary if row.num_clusters > 1]
        assert several
        assert all(row.low is not None and row.low <= row.value <= row.high for row in several)
        assert all(len(sample.prompt_hash) == 16 for sample in result.samples)


@pytest.mark.parametrize("task", ["niah", "pairs"])
def test_resumed_after_half_the_predictions(
    recipe: EvalRecipe, tmp_path: Path, fake_answer: Any, monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    whole, halved = FakeEngine(fake_answer), FakeEngine(fake_answer, limit=2)
    monkeypatch.setattr(Session, "engine", property(lambda _: whole))
    expected = evaluate(recipe, [task], tmp_path / "whole")
    monkeypatch.setattr(Session, "engine", property(lambda _: halved))
    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe, [task], tmp_path / "halved")
    assert not (tmp_path / "halved" / "results.json").exists()
    rest = FakeEngine(fake_answer)
    monkeypatch.setattr(Session, "engine", property(lambda _: rest))
    assert comparable(evaluate(recipe, [task], tmp_path / "halved")) == comparable(expected)
    assert rest.answered == whole.answered - 2


@pytest.mark.parametrize("task", ["niah", "pairs"])
def test_what_one_engine_began_another_does_not_finish(
    recipe: EvalRecipe, tmp_path: Path, fake_answer: Any, monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    halved, other, same = FakeEngine(fake_answer, limit=2), FakeEngine(fake_answer), FakeEngine(fake_answer)
    other.name = "other 1"
    monkeypatch.setattr(Session, "engine", property(lambda _: halved))
    with pytest.raises(KeyboardInterrupt):
        evaluate(recipe, [task], tmp_path)
    monkeypatch.setattr(Session, "engine", property(lambda _: other))
    with pytest.raises(UserError, match=r"was made by engine 'fake 1', now it is 'other 1' \(continue with that"):
        evaluate(recipe, [task], tmp_path)
    assert other.answered == 0
    monkeypatch.setattr(Session, "engine", property(lambda _: same))
    finished = evaluate(recipe, [task], tmp_path)
    monkeypatch.setattr(Session, "engine", property(lambda _: other))
    assert evaluate(recipe, [task], tmp_path) == finished  # nothing is made: nothing to refuse


def test_tasks_accumulate_and_finished_ones_are_skipped(
    recipe: EvalRecipe, tmp_path: Path, fake_answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(fake_answer)
    monkeypatch.setattr(Session, "engine", property(lambda _: engine))
    first = evaluate(recipe, ["niah"], tmp_path)
    both = evaluate(recipe, ["niah", "ppl"], tmp_path)
    assert both.tasks["niah"] == first.tasks["niah"]
    assert engine.answered == 4


def test_other_settings_or_another_model_are_refused(recipe: EvalRecipe, tmp_path: Path) -> None:
    evaluate(recipe, ["ppl"], tmp_path)
    other = recipe.model_copy(update={"ppl": PerplexitySettings(lengths=(32, 128), num_documents=2)})
    with pytest.raises(UserError, match=r"started with lengths=\[32, 64\], now it is \[32, 128\]"):
        evaluate(other, ["ppl"], tmp_path)
    with pytest.raises(UserError, match="model"):
        evaluate(recipe.model_copy(update={"model": "embedded"}), ["niah"], tmp_path)
    # The machine that generates is not a setting of perplexity.
    evaluate(
        recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"max_batch_rows": 1})}), ["ppl"], tmp_path
    )


def test_results_without_predictions_stay_those_of_their_model_and_settings(
    recipe: EvalRecipe, tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = evaluate(recipe, ["ppl"], tmp_path / "out")
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    with open(tmp_path / "model" / "model.safetensors", "ab") as weights:
        weights.write(b" ")  # another model
    lengths = PerplexitySettings(lengths=(32, 128), num_documents=2)
    for changed, task, fault in (
        ({"model": str(tmp_path / "model")}, "ppl", "started with model"),
        ({"model": str(tmp_path / "model")}, "niah", "started with model"),
        ({"ppl": lengths}, "ppl", r"started with lengths=\[32, 64\]"),
    ):
        shutil.rmtree(tmp_path / "out" / "predictions")  # for room
        with pytest.raises(UserError, match=fault):
            evaluate(recipe.model_copy(update=changed), [task], tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "predictions")
    assert evaluate(recipe, ["ppl"], tmp_path / "out") == results
    assert "ppl: finished already" in capsys.readouterr().err


def test_data_are_known_by_their_samples_and_not_by_their_files(recipe: EvalRecipe, tmp_path: Path) -> None:
    assert recipe.pairs is not None
    data = recipe.pairs.data
    results = evaluate(recipe, ["pairs"], tmp_path / "out")
    known, files = data_fingerprint(data), files_fingerprint(data)
    assert results.tasks["pairs"].settings["data_fingerprint"] == known
    samples = read_samples(data)
    (file,) = sample_files(data)
    of_cache = {sample.id: sample.chosen.model_copy(update={"origin": "cache"}) for sample in samples}
    write_samples(file, [sample.model_copy(update={"chosen": of_cache[sample.id]}) for sample in samples])
    assert files_fingerprint(data) != files
    assert data_fingerprint(data) == known
    # An earlier version knew the folder by its files.
    bound = tmp_path / "out" / "predictions" / "pairs.json"
    bound.write_text(json.dumps({**json.loads(bound.read_text()), "data_fingerprint": files_fingerprint(data)}))
    assert evaluate(recipe, ["pairs"], tmp_path / "out") == results
    for changed in ({"answers": ["another"]}, {"question": "Another?"}, {"prompt_ids": [5, 6, 7]}):
        write_samples(file, [samples[0].model_copy(update=changed), *samples[1:]])
        assert data_fingerprint(data) != known
        with pytest.raises(UserError, match="started with data_fingerprint="):
            evaluate(recipe, ["pairs"], tmp_path / "out")


def test_overrides_say_more_of_what_an_option_turns_on() -> None:
    overrides = ["niah.retrieval.num_calibration=8"]
    for fields in ({"niah.retrieval": {}}, {"niah.retrieval": {}, "niah.retrieval.heads": "heads.json"}):
        niah = load_eval_recipe(None, "niah", {"model": "m", **fields}, overrides).niah
        assert niah is not None
        assert niah.retrieval is not None
        assert niah.retrieval.num_calibration == 8
        assert niah.retrieval.heads == (Path("heads.json") if len(fields) > 1 else None)


def test_a_run_refused_at_its_start_binds_nothing(recipe: EvalRecipe, tmp_path: Path) -> None:
    too_long = recipe.model_copy(update={"ppl": PerplexitySettings(lengths=(4096,))})
    with pytest.raises(UserError, match="needs 4096 positions, the model has 2048"):
        evaluate(too_long, ["ppl"], tmp_path)
    evaluate(recipe, ["ppl"], tmp_path)


def write_recipe(path: Path, model: Path) -> Path:
    import yaml

    section = {"ppl": {"lengths": [16, 32], "num_documents": 2}, "niah": {"lengths": [700], "num_samples": 1}}
    path.write_text(yaml.safe_dump({"model": str(model), "eval": section}), encoding="utf-8")
    return path


def test_command_line(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_model_dir)
    out = str(tmp_path / "out")
    # Overrides may stand before or after the options; one task drops the recipe's others.
    assert main(["ppl", "ppl.num_documents=1", "--recipe", str(recipe), "-o", out, "ppl.lengths=[8, 24]"]) == 0
    assert "Perplexity, first 24 tokens" in capsys.readouterr().out
    result = read_results(Path(out))
    assert list(result.tasks) == ["ppl"]
    assert result.tasks["ppl"].settings["lengths"] == [8, 24]
    assert main(["ppl", "--model", str(tiny_model_dir), "--dry-run"]) == 0
    assert "num_documents: 8" in capsys.readouterr().out
    assert main(["run", str(recipe), "niah=null", "ppl.num_documents=1", "ppl.lengths=[8,24]", "-o", out]) == 0
    assert "finished already" in capsys.readouterr().err


def test_perplexity_of_a_model_without_chat_template(tiny_model_dir: Path, tmp_path: Path) -> None:
    bare = tmp_path / "base-model"
    shutil.copytree(tiny_model_dir, bare, ignore=shutil.ignore_patterns("chat_template*"))
    config = json.loads((bare / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    options = ["ppl.num_documents=1", "ppl.lengths=[8,24]"]
    for model, name in ((bare, "bare"), (tiny_model_dir, "chat")):
        assert main(["ppl", "--model", str(model), *options, "-o", str(tmp_path / name)]) == 0
    bare_result, chat_result = (read_results(tmp_path / name).tasks["ppl"] for name in ("bare", "chat"))
    assert bare_result.samples == chat_result.samples
    assert main(["niah", "--model", str(bare), "-o", str(tmp_path / "needles")]) == 2  # which is asked in a chat


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ppl", "-o", "x"], "'model' is missing"),
        (["pairs", "--model", "MODEL", "-o", "x"], "'pairs.data' is missing"),
        (["niah", "--model", "MODEL"], "no folder for the results"),
        (["niah", "--model", "MODEL", "niah.lenghts=[1]", "-o", "x"], "did you mean 'lengths'?"),
        (["ppl", "--model", "MODEL", "--adapter", "nowhere", "-o", "x"], "holds no adapter"),
        (["ppl", "--model", "MODEL", "ppl.text=nowhere", "-o", "x"], "no .txt file here"),
        (["run", "nowhere.yaml", "-o", "x"], "no such recipe"),
        (["compare", "x", "-o", "r.html"], "only one folder"),
        (["compare", "x", "y", "-o", "r.pdf"], "give -o report.html"),
        (["compare", "x", "y", "-o", "r.html"], "holds no results"),
    ],
)
def test_user_errors_are_one_line(
    arguments: list[str],
    message: str,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(tiny_model_dir) if text == "MODEL" else text for text in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_another_machine_takes_a_result_as_it_is_and_goes_on_with_no_other_dtype(
    recipe: EvalRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = evaluate(recipe, ["ppl"], tmp_path)
    assert before.tasks["ppl"].settings["dtype"] == "float32"
    monkeypatch.setattr("logoeval.run.weights_dtype", lambda _: "bfloat16")  # as on a GPU
    assert comparable(evaluate(recipe, ["ppl"], tmp_path)) == comparable(before)
    (tmp_path / "results.json").unlink()
    with pytest.raises(UserError, match="dtype='float32', now it is 'bfloat16'"):
        evaluate(recipe, ["ppl"], tmp_path)


def test_the_dtype_that_is_left_to_the_machine_is_that_of_what_began(recipe: EvalRecipe, tmp_path: Path) -> None:
    assert with_begun_dtype(recipe, tmp_path / "new") == recipe
    evaluate(recipe, ["ppl"], tmp_path / "out" / "base")
    for folder in (tmp_path / "out", tmp_path / "out" / "base"):
        assert with_begun_dtype(recipe, folder).engine.dtype == "float32"
    wanted = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"dtype": "bfloat16"})})
    assert with_begun_dtype(wanted, tmp_path / "out") == wanted


def test_a_task_without_predictions_has_not_begun(recipe: EvalRecipe, tmp_path: Path) -> None:
    """A stop leaves what a task is bound to before its first prediction, perhaps cut by a power failure."""
    (tmp_path / "predictions").mkdir()
    for content in ('{"dtype": "bfloat16"}', '{"dtype": "bf'):
        (tmp_path / "predictions" / "ppl.json").write_text(content)
        assert with_begun_dtype(recipe, tmp_path) == recipe


def test_a_finished_run_loads_no_torch(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_model_dir)
    arguments = ["ppl", "--recipe", str(recipe), "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    before = (tmp_path / "out" / "results.json").read_bytes()
    code = (
        "import sys; from logoeval.cli import main; status = main(sys.argv[1:]); "
        "print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
    assert (tmp_path / "out" / "results.json").read_bytes() == before


def test_predictions_are_whole_lines(recipe: EvalRecipe, tmp_path: Path) -> None:
    evaluate(recipe, ["pairs"], tmp_path)
    for name in ("pairs.jsonl", "pairs_logprobs.jsonl"):
        records = [json.loads(line) for line in (tmp_path / "predictions" / name).open(encoding="utf-8")]
        assert sorted(record["id"] for record in records) == [f"q{number}" for number in range(6)]


def test_half_of_the_results_is_made_again_from_the_predictions(
    recipe: EvalRecipe,
    tmp_path: Path,
    fake_answer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = FakeEngine(fake_answer)
    monkeypatch.setattr(Session, "engine", property(lambda _: engine))
    whole = evaluate(recipe, TASKS, tmp_path)
    answered, file = engine.answered, tmp_path / "results.json"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="not valid JSON"):
        read_results(tmp_path)  # who only reads is told
    assert comparable(evaluate(recipe, TASKS, tmp_path)) == comparable(whole)
    assert "results.json is damaged" in capsys.readouterr().err
    assert engine.answered == answered
