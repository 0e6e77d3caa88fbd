"""Short-context tasks through lm-evaluation-harness, on the tiny model: its numbers are ours, to the last digit."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pytest
import yaml

from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, GenerationResult
from logodata.engines.settings import EngineSettings
from logodata.prompts import encode_text
from logoeval.cli import main
from logoeval.compare.compare import compare
from logoeval.recipe.settings import EvalRecipe
from logoeval.records import TaskResult, read_results
from logoeval.run import evaluate
from logoeval.session import Session
from logoeval.tasks.record_file import RecordFile
from logoeval.tasks.short.harness import folder_fingerprint, quiet
from logoeval.tasks.short.outcome import OWN_LONGBENCH_NOTE, HarnessSample, HarnessScore, metric, notes
from logoeval.tasks.short.settings import ShortSettings, ShortTask
from tests.conftest import make_model
from tests.logoeval.conftest import FakeEngine
from tests.logoeval.pages import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from logoeval.tasks.short.model import HarnessModel

lm_eval = pytest.importorskip("lm_eval")

WORDS = ("mill", "barn", "well", "yard", "shed", "cave", "loft", "lake")


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets are cached in the test's folder; the harness's own 14,000 tasks, ten seconds to list, are left out."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda **options: TaskManager(**{**options, "include_defaults": False})
    )


def _questions(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Where did number {number} sleep?",
            "choices": [
                # Of equal length but for one in four: the likeliest answer is the model's choice, not the shortest.
                f"in the {'old ' * ((number + step) % 4 == 0)}{WORDS[(number * step + step) % 8]}"
                for step in (1, 2, 5)
            ],
            "answer": number * 7 % 3,
        }
        for number in range(first, first + count)
    ]


def _write_task(folder: Path, name: str, rows: list[dict[str, Any]], **changes: Any) -> None:
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data), "train": str(data)}},
        "test_split": "test",
        "fewshot_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 3},
        **changes,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def _write_group(folder: Path, name: str, members: list[str], weighted: bool | None = True, **changes: Any) -> None:
    combined = [] if weighted is None else [{"metric": "acc", "weight_by_size": weighted}]
    config = {"group": name, "task": members, "aggregate_metric_list": combined, "metadata": {"version": 2}, **changes}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


@pytest.fixture
def own_tasks(tmp_path: Path) -> Path:
    """Two parts of a benchmark, with three tasks of unequal size; a task alone; one that generates."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, count in (("stem_a", 5), ("stem_b", 9), ("arts_a", 12), ("alone", 40), ("single", 8)):
        _write_task(folder, name, _questions(count, len(name)))
    _write_group(folder, "stem", ["stem_a", "stem_b"], group_alias="sciences")
    _write_group(folder, "whole", ["stem", "arts_a"])
    _write_group(folder, "unweighted", ["stem_a", "arts_a"], weighted=False)
    _write_group(folder, "loose", ["stem_a", "arts_a"], weighted=None)
    _write_task(
        folder,
        "spoken",
        [{"question": "Say mill.", "answer": "mill"}, {"question": "Say nothing.", "answer": ""}],
        output_type="generate_until",
        doc_to_choice=None,
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    return folder


@pytest.fixture
def make_recipe(tiny_model_dir: Path, own_tasks: Path) -> Callable[..., EvalRecipe]:
    def make(*tasks: str | dict[str, Any], **changes: Any) -> EvalRecipe:
        settings = {"tasks": tasks, "include_path": own_tasks, **changes}
        return EvalRecipe(model=str(tiny_model_dir), short=ShortSettings(**settings))

    return make


def _run(recipe: EvalRecipe, folder: Path) -> TaskResult:
    return evaluate(recipe, ["short"], folder).tasks["short"]


def _value(result: TaskResult, key: str, **where: str) -> Any:
    return next(row for row in result.summary if row.metric == key and row.slice == where)


def _harness(tiny_model_dir: Path, own_tasks: Path, tasks: list[str], shots: int | None) -> dict[str, Any]:
    """The harness by itself."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with quiet():
        found: dict[str, Any] = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(tiny_model_dir), batch_size=8),
            tasks=tasks,
            num_fewshot=shots,
            task_manager=TaskManager(include_path=str(own_tasks), include_defaults=False),
            bootstrap_iters=2,
        )
    return found["results"]


def test_numbers_are_the_harness_s_own(
    make_recipe: Callable[..., EvalRecipe], tiny_model_dir: Path, own_tasks: Path, tmp_path: Path
) -> None:
    asked = [{"name": "whole", "shots": 2}, {"name": "alone", "shots": 2, "metric": "acc_norm"}, "spoken"]
    result = _run(make_recipe(*asked), tmp_path / "out")
    assert [metric.key for metric in result.metrics] == ["whole/acc", "alone/acc_norm", "spoken/exact_match"]
    two_shots = _harness(tiny_model_dir, own_tasks, ["whole", "alone"], 2)
    generated = _harness(tiny_model_dir, own_tasks, ["spoken"], None)
    expected = {
        "whole/acc": two_shots["whole"]["acc,none"],
        "alone/acc_norm": two_shots["alone"]["acc_norm,none"],
        "spoken/exact_match": generated["spoken"]["exact_match,none"],
    }
    for key, value in expected.items():
        assert abs(_value(result, key).value - value) < 1e-12
    assert abs(_value(result, "whole/acc", part="sciences").value - two_shots["stem"]["acc,none"]) < 1e-12
    assert abs(_value(result, "whole/acc", part="arts_a").value - two_shots["arts_a"]["acc,none"]) < 1e-12
    # The bootstrap's interval is the normal one of the harness's standard error, but for chance.
    alone = _value(result, "alone/acc_norm")
    assert (alone.high - alone.low) / 2 == pytest.approx(1.96 * two_shots["alone"]["acc_norm_stderr,none"], rel=0.15)
    assert result.settings["versions"] == {"whole": "2", "alone": "3", "spoken": "3"}
    assert result.settings["lm_eval"]
    assert [metric.label for metric in result.metrics] == [
        "whole, 2-shot accuracy",
        "alone, 2-shot accuracy",
        "spoken, 0-shot exact match",
    ]
    assert not any("PARTIAL" in note for note in result.notes)


def test_a_group_of_equal_tasks_and_one_without_a_number(
    make_recipe: Callable[..., EvalRecipe], tiny_model_dir: Path, own_tasks: Path, tmp_path: Path
) -> None:
    equal = _run(make_recipe("unweighted"), tmp_path / "equal")
    expected = _harness(tiny_model_dir, own_tasks, ["unweighted"], None)
    assert abs(_value(equal, "unweighted/acc").value - expected["unweighted"]["acc,none"]) < 1e-12
    pooled = sum(row.scores["unweighted/acc"] for row in equal.samples) / len(equal.samples)
    assert pooled != pytest.approx(expected["unweighted"]["acc,none"], abs=1e-6)
    loose = _run(make_recipe("loose"), tmp_path / "loose")
    assert [metric.key for metric in loose.metrics] == ["stem_a/acc", "arts_a/acc"]


def test_the_default_tasks_on_made_up_data(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness's own task files, MMLU's 57 subjects among them; only what comes from the hub is made here."""
    subjects: list[str] = []

    def load_dataset(path: str, name: str | None = None, **_: Any) -> datasets.DatasetDict:
        if path == "cais/mmlu":
            assert name is not None
            subjects.append(name)
            rows = [{**row, "choices": [*row["choices"], "no"]} for row in _questions(5)]
            splits = {"test": rows[: 1 + len(subjects) % 3], "dev": rows}
        elif path == "allenai/ai2_arc":
            rows = [
                {
                    "question": row["question"],
                    "choices": {"text": row["choices"], "label": ["A", "B", "C"]},
                    "answerKey": "ABC"[row["answer"]],
                }
                for row in _questions(30)
            ]
            splits = {"train": rows, "validation": rows[:1], "test": rows[:4]}
        else:
            assert path == "truthfulqa/truthful_qa"
            targets = {"choices": ["yes", "no", "perhaps"], "labels": [1, 0, 1]}
            rows = [
                {"question": row["question"], "mc1_targets": targets, "mc2_targets": targets} for row in _questions(4)
            ]
            splits = {"validation": rows}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(part) for split, part in splits.items()})

    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", load_dataset)
    files = Path(lm_eval.__file__).parent / "tasks"
    for folder in ("mmlu/default", "arc", "truthfulqa"):
        shutil.copytree(files / folder, tmp_path / "tasks" / folder)
    settings = ShortSettings(batch_size=32, include_path=tmp_path / "tasks")
    result = _run(EvalRecipe(model=str(tiny_model_dir), short=settings), tmp_path / "out")
    assert [metric.label for metric in result.metrics] == [
        "MMLU, 5-shot accuracy",
        "ARC easy, 25-shot accuracy",
        "ARC challenge, 25-shot accuracy",
        "TruthfulQA MC1, 0-shot accuracy",
        "TruthfulQA MC2, 0-shot truth",
    ]
    assert len(subjects) == 57
    mmlu = [row for row in result.summary if row.metric == "mmlu/acc"]
    assert [row.slice.get("part") for row in mmlu] == [None, "stem", "other", "social sciences", "humanities"]
    # What the harness says stands in the records, and every mean was compared with it.
    records = [
        record
        for line in (tmp_path / "out" / "predictions" / "short.jsonl").read_text(encoding="utf-8").splitlines()
        for record in json.loads(line)["units"]
    ]
    assert [record["name"] for record in records] == [task.name for task in ShortSettings().tasks]
    for record in records:
        found = _value(result, f"{record['name']}/{record['metric'].removesuffix(',none')}")
        assert abs(found.value - record["value"]) < 1e-12
    assert [metric.kind for metric in result.metrics] == ["share"] * 5


def test_a_limited_run_says_so_everywhere(make_recipe: Callable[..., EvalRecipe], tmp_path: Path) -> None:
    result = _run(make_recipe("whole", limit=7), tmp_path / "out")
    assert result.metrics[0].label == "whole, 0-shot accuracy (PARTIAL: first 7 of each task)"
    assert result.notes[0].startswith("PARTIAL: the first 7 samples of each task, 19 of 26")
    # A limit that cuts nothing is a whole run.
    assert "PARTIAL" not in _run(make_recipe("stem_a", limit=7), tmp_path / "whole").metrics[0].label


def test_killed_in_the_middle_of_a_call(
    make_recipe: Callable[..., EvalRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe({"name": "whole", "shots": 1}, {"name": "single", "shots": 0})
    expected = _run(recipe, tmp_path / "whole")
    from logoeval.tasks.short.model import HarnessModel

    add, done = HarnessModel.add_partial, []

    def add_or_die(limit: int) -> Callable[..., None]:
        def die(self: HarnessModel, *answer: Any) -> None:
            if len(done) == limit:
                raise KeyboardInterrupt
            done.append(answer)
            add(self, *answer)

        return die

    monkeypatch.setattr(HarnessModel, "add_partial", add_or_die(90))  # of 26 x 3 and 8 x 3
    with pytest.raises(KeyboardInterrupt):
        _run(recipe, tmp_path / "killed")
    folder = tmp_path / "killed" / "predictions"
    assert len((folder / "short.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    assert len((folder / "short_answers.jsonl").read_text(encoding="utf-8").splitlines()) == 90
    assert not (tmp_path / "killed" / "results.json").exists()
    done.clear()
    monkeypatch.setattr(HarnessModel, "add_partial", add_or_die(10_000))
    resumed = _run(recipe, tmp_path / "killed")
    assert len(done) == 34 * 3 - 90
    assert resumed.samples == expected.samples
    assert resumed.summary == expected.summary


def test_a_model_that_reasons_is_scored_by_what_follows(
    make_recipe: Callable[..., EvalRecipe],
    own_tasks: Path,
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval.models.utils import postprocess_generated_text

    said = [
        "<think>Is it a mill?\n\nYes.</think>\n\nmill\nor a barn",  # the task's stop, a newline, holds for the answer
        "<think>mill mill mill" + " and on" * 20,  # cut: scored whole it would not be empty
        "mill",
        "<think>so</think>millstones",  # the answer has the task's six tokens
    ]
    rows = [{"question": f"Say mill {number}.", "answer": "mill"} for number in range(4)]
    _write_task(
        own_tasks,
        "spoken",
        rows,
        output_type="generate_until",
        doc_to_choice=None,
        generation_kwargs={"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )

    def say(request: GenerationRequest) -> GenerationResult:
        prompt = tiny_tokenizer.decode(request.prompt_ids)
        assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
        text = next(text for number, text in enumerate(said) if f"Say mill {number}." in prompt)
        ids, most = encode_text(tiny_tokenizer, text), request.sampling.max_new_tokens
        assert most == 60 + 6
        return GenerationResult(request.id, tuple(ids[:most]), "length" if len(ids) > most else "stop")

    engine = FakeEngine(say)
    monkeypatch.setattr(Session, "engine", engine)
    recipe = make_recipe("spoken", apply_chat_template=True).model_copy(update={"thinking_tokens": 60})
    result = _run(recipe, tmp_path / "out")
    assert engine.answered == 4
    path = tmp_path / "out" / "predictions" / "short_answers.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    by_answer = {record["answer"]: record for record in records}
    assert set(by_answer) == {"mill", "", "millst"}
    assert by_answer[""]["reasoning_cut"]
    assert by_answer["millst"]["reasoning"] == "<think>so"
    assert sum("reasoning" in record for record in records) == 3
    # Where the reasoning ends within its budget, the harness's own reading is the same.
    assert postprocess_generated_text(said[0], ["\n"], "</think>") == "mill"
    assert [sample.scores["spoken/exact_match"] for sample in result.samples] == [1.0, 0.0, 1.0, 0.0]
    assert result.settings["thinking"] == {"tokens": 60, "end": "</think>"}
    assert any(
        text == "3 of 4 replies reasoned, up to '</think>' and within 60 tokens; 1 did not come to its end, and their "
        "answers count as empty"
        for text in result.notes
    )
    assert _run(recipe, tmp_path / "out").samples == result.samples
    other = recipe.model_copy(update={"thinking_tokens": 61})
    with pytest.raises(UserError, match=r"this folder was started with thinking"):
        _run(other, tmp_path / "out")
    small = recipe.model_copy(update={"thinking_tokens": 2048})
    with pytest.raises(UserError, match=r"an answer with its reasoning may take 2054 tokens, the window has 2048"):
        _run(small, tmp_path / "small")


def test_what_cannot_follow_a_reasoning_is_refused(
    make_recipe: Callable[..., EvalRecipe], own_tasks: Path, tmp_path: Path
) -> None:
    sampled = {"until": ["\n"], "max_gen_toks": 4, "do_sample": True, "temperature": 0.6}
    kind = {"output_type": "generate_until", "doc_to_choice": None, "metric_list": [{"metric": "exact_match"}]}
    _write_task(own_tasks, "sampled", _questions(2), generation_kwargs=sampled, **kind)
    thinks = {"thinking_tokens": 60}
    for task, message in (
        ("whole", "stem_a: compares log-likelihoods of answers"),
        ("sampled", "sampled: samples its"),
    ):
        with pytest.raises(UserError, match=message):
            _run(make_recipe(task, apply_chat_template=True).model_copy(update=thinks), tmp_path / task)
    plain = _run(make_recipe("stem").model_copy(update=thinks), tmp_path / "plain")
    assert plain.samples == _run(make_recipe("stem"), tmp_path / "same").samples
    assert "thinking" not in plain.settings
    assert plain.notes[-1].endswith("texts to continue, for which the model gets no tokens to reason")


def test_a_server_is_refused(make_recipe: Callable[..., EvalRecipe], tmp_path: Path) -> None:
    engine = EngineSettings(kind="openai", base_urls=("http://127.0.0.1:1/v1",))
    with pytest.raises(UserError, match=r"runs on transformers and vllm here, and engine\.kind is openai"):
        _run(make_recipe("alone").model_copy(update={"engine": engine}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_models_are_compared_sample_by_sample(
    make_recipe: Callable[..., EvalRecipe], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    recipe = make_recipe({"name": "whole", "shots": 1}, "single")
    _run(recipe, tmp_path / "before")
    other = tmp_path / "other"
    make_model(len(tiny_tokenizer), num_hidden_layers=3).save_pretrained(other)
    tiny_tokenizer.save_pretrained(other)
    _run(recipe.model_copy(update={"model": str(other)}), tmp_path / "after")
    comparison = compare([tmp_path / "before", tmp_path / "after"])
    assert [row.num_samples for row in comparison.rows if not row.slice] == [26, 8]
    assert any(row.differences[0].change.value for row in comparison.rows)
    page = render(comparison)
    assert "Short contexts: what the model could do before" in page
    assert "whole, 1-shot accuracy, sciences" in page


def test_prompts_longer_than_the_window(make_recipe: Callable[..., EvalRecipe], tmp_path: Path) -> None:
    recipe = make_recipe({"name": "alone", "shots": 3})
    recipe = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"max_model_len": 64})})
    with pytest.raises(UserError, match=r"120 of 120 prompts are longer than the window of 64 tokens, the longest"):
        _run(recipe, tmp_path / "out")
    assert recipe.short is not None
    cut = recipe.model_copy(update={"short": recipe.short.model_copy(update={"truncate": True, "limit": 4})})
    notes = _run(cut, tmp_path / "cut").notes
    assert any("12 of 12 prompts were longer than the window of 64 tokens and lost" in note for note in notes)
    generating = make_recipe("spoken")
    generating = generating.model_copy(update={"engine": recipe.engine.model_copy(update={"max_model_len": 12})})
    with pytest.raises(UserError, match="2 of 2 prompts are longer than the window of 12"):
        _run(generating, tmp_path / "generating")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("stem_c", r"lm-eval has no task 'stem_c' \(nearest: stem_b, stem_a"),
        ({"name": "alone", "metric": "f2"}, r"alone: has no metric 'f2' \(its metrics: acc, acc_norm\)"),
        ({"name": "alone", "shots": 41}, "has 40 solved examples"),
        ({"name": "fixed", "shots": 3}, "fixes its examples at 0, 3 were asked for"),
        ("lost", r"lost: cannot read the data set json .*gone.jsonl.*\(check the paths in its task file\)"),
        ("hub", r"hub: cannot read the data set nobody/nothing: .*HF_HOME"),
        ("matthews", "its metric 'mcc' is no mean over samples but matthews_corrcoef"),
    ],
)
def test_bad_input(
    make_recipe: Callable[..., EvalRecipe], own_tasks: Path, tmp_path: Path, task: Any, message: str
) -> None:
    _write_task(own_tasks, "fixed", _questions(4), num_fewshot=0)
    _write_task(own_tasks, "hub", _questions(4), dataset_path="nobody/nothing", dataset_kwargs=None)
    _write_task(own_tasks, "lost", _questions(4), dataset_kwargs={"data_files": {"test": str(tmp_path / "gone.jsonl")}})
    _write_task(own_tasks, "matthews", _questions(4), metric_list=[{"metric": "mcc"}])
    with pytest.raises(UserError, match=message):
        _run(make_recipe(task), tmp_path / "out")


def test_overlapping_tasks_and_an_empty_folder(make_recipe: Callable[..., EvalRecipe], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stem_a is part of 'whole' and of 'stem'"):
        _run(make_recipe("whole", {"name": "stem", "shots": 1}), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no task file"):
        _run(make_recipe("whole", include_path=tmp_path / "empty"), tmp_path / "out")


def test_own_tasks_are_known_by_all_their_files(tmp_path: Path) -> None:
    (tmp_path / "own" / "more").mkdir(parents=True)
    (tmp_path / "own" / "t.yaml").write_text("task: t")
    (tmp_path / "own" / "more" / "d.jsonl").write_text("{}")
    before = folder_fingerprint(tmp_path / "own")
    (tmp_path / "own" / "__pycache__").mkdir()
    (tmp_path / "own" / "__pycache__" / "u.pyc").write_text("")
    (tmp_path / "own" / "._t.yaml").write_text("")
    assert folder_fingerprint(tmp_path / "own") == before
    (tmp_path / "own" / "more" / "d.jsonl").write_text("[]")
    assert folder_fingerprint(tmp_path / "own") != before
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked").symlink_to(tmp_path / "own")
    assert folder_fingerprint(tmp_path / "elsewhere")


def test_missing_extra(make_recipe: Callable[..., EvalRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logoeval.tasks.short.harness.importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"lm-eval is not installed.*logo-align\[short\]"):
        _run(make_recipe("alone"), tmp_path / "out")


def test_command_line_and_a_quiet_terminal(
    tiny_model_dir: Path, own_tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["short", "--model", str(tiny_model_dir), "--include-path", str(own_tasks), "-o", str(tmp_path / "out")]
    assert main([*command, "--tasks", "whole, spoken", "--limit", "3"]) == 0
    out, err = capfd.readouterr()
    assert "whole, 0-shot accuracy (PARTIAL" in out
    assert err.splitlines() == [
        "short: reading whole",
        "short: reading spoken",
        "short: own shots done (whole, spoken)",
    ]
    assert read_results(tmp_path / "out").tasks["short"].settings["limit"] == 3
    assert main([*command, "--tasks", "whole", "--limit", "3"]) == 2
    assert main([*command, "--tasks", "wole", "-o", str(tmp_path / "other")]) == 2
    assert re.search("nearest: whole", capfd.readouterr().err)


def test_settings() -> None:
    assert [(task.name, task.shots, task.metric) for task in ShortSettings().tasks] == [
        ("mmlu", 5, "acc"),
        ("arc_easy", 25, "acc_norm"),
        ("arc_challenge", 25, "acc_norm"),
        ("truthfulqa_mc1", 0, "acc"),
        ("truthfulqa_mc2", 0, "acc"),
    ]
    assert ShortSettings(tasks="mmlu").tasks == (ShortTask(name="mmlu", shots=5, metric="acc"),)
    assert ShortTask(name="mmlu", shots=0).shots == 0
    assert ShortTask(name="ruler").shots is None
    with pytest.raises(ValueError, match="repeat"):
        ShortSettings(tasks=["mmlu", {"name": "mmlu", "shots": 0}])


def test_the_harness_s_longbench_is_never_called_official() -> None:
    sample = HarnessSample(
        task="longbench_qasper",
        part="longbench_qasper",
        doc_id=0,
        prompt_hash="h",
        target="the mill",
        answers=["a mill"],
        score=0.5,
    )
    record = HarnessScore(
        name="longbench_qasper",
        asked="longbench_qasper",
        metric="score,none",
        value=0.5,
        stderr=None,
        better="higher",
        shots=[0],
        version="1",
        by_task=False,
        num_measured=1,
        num_all=1,
        samples=[sample],
    )
    label = metric(record, limit=None).label
    assert label.startswith("longbench_qasper (lm-eval's own, not LongBench's official score)")
    assert OWN_LONGBENCH_NOTE in notes([record], limit=None)
    other = record.model_copy(update={"samples": [sample.model_copy(update={"task": "longbench2_table"})]})
    assert OWN_LONGBENCH_NOTE not in notes([other], limit=None)


def test_chats_see_one_date_on_every_day(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """As in all other prompts (logodata.prompts)."""
    from logoeval.tasks.short.model import HarnessModel
    from logoeval.tasks.short.recording import HarnessAnswer

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}"
    answers = RecordFile(tmp_path / "answers.jsonl", HarnessAnswer)
    model = HarnessModel(
        make_model(len(tokenizer)), tokenizer, window=64, batch_size=1, truncate=False, answers=answers
    )
    assert model.apply_chat_template([{"role": "user", "content": "Who?"}]) == "26 Jul 2024: Who?"
