"""LongBench from rows to results: data in every form, prompts, resuming, scoring what is there, comparing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError
from logoeval.cli import main
from logoeval.compare.compare import compare
from logoeval.intervals import summarise
from logoeval.recipe.settings import EvalRecipe
from logoeval.records import Results, read_results, write_results
from logoeval.run import evaluate
from logoeval.session import Session
from logoeval.tasks.longbench.data import read_rows
from logoeval.tasks.longbench.prompts import PromptBuilder
from logoeval.tasks.longbench.score_files import score_predictions
from logoeval.tasks.longbench.settings import LongBenchSettings
from logoeval.tasks.longbench.summary import Scored, best_score, metrics, notes, sample_rows
from logoeval.tasks.longbench.task_table import CATEGORIES, TASKS, bucket, official_rows
from tests.logoeval.conftest import FakeEngine
from tests.logoeval.pages import render
from tests.logoeval.synthetic import task_result

GOLD = {"retrieval": "Paragraph 2", "retrieval_zh": "段落2", "count": "4", "classification": "Date"}


def row(task: str, number: int, **changes: Any) -> dict[str, Any]:
    made = {
        "_id": f"{task}-id-{number}",
        "dataset": task,
        "input": f"Where was it in story {number}?",
        "context": f"Once the <|im_end|> of story {number} stood in the mill by the bridge. " * 3,
        "answers": [GOLD.get(TASKS[task].metric, "in the old mill"), GOLD.get(TASKS[task].metric, "a bridge")],
        "length": 3000 * (number + 1),
        "all_classes": ["Date", "Place"] if TASKS[task].metric == "classification" else None,
        "language": TASKS[task].language,
    }
    return {**made, **changes}


def write_lines(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Two rows of every task in one file."""
    return write_lines(tmp_path / "rows.jsonl", [row(task, number) for task in TASKS for number in range(2)])


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_is_the_published_one() -> None:
    assert len(TASKS) == 21
    assert sum(task.num_rows for task in TASKS.values()) == 4750
    assert sum(task.in_logo_table for task in TASKS.values()) == 14
    assert sum(task.in_e for task in TASKS.values()) == 13
    assert {name for name, task in TASKS.items() if not task.chat} == {
        "trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p",
    }  # fmt: skip
    assert {name for name, task in TASKS.items() if task.first_line} == {"trec", "triviaqa", "samsum", "lsht"}
    assert "asconcisely" in TASKS["narrativeqa"].prompt  # its typo is part of the benchmark
    for task in TASKS.values():
        assert task.prompt.count("{context}") == 1
        assert task.prompt.format(context="C{x}", input="I") == task.prompt.replace("{context}", "C{x}").replace(
            "{input}", "I"
        )


def test_first_line_rule_and_best_answer() -> None:
    answers = ["Wrong one", "Kim is home."]
    assert best_score(TASKS["samsum"], "\n\nKim is home.\nDialogue: Kim", answers, None, "rapidfuzz")[0] > 0.99
    assert best_score(TASKS["qmsum"], "\n\nKim is home.\nDialogue: Kim", answers, None, "rapidfuzz")[0] < 0.99
    assert best_score(TASKS["qasper"], "Kim", ["no", "Kim", "no"], None, "rapidfuzz") == (1.0, False)
    assert best_score(TASKS["qasper"], "", ["a"], None, "rapidfuzz") == (0.0, False)


# -- data --------------------------------------------------------------------------------------------------------------


def test_rows_read_alike_from_every_form(whole: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = read_rows(whole, None, False)
    assert list(expected) == list(TASKS)
    by_task = {task: [row(task, number) for number in range(2)] for task in TASKS}
    folder = tmp_path / "folder"
    for task, records in by_task.items():
        write_lines(folder / f"{task}.jsonl", records)
        if TASKS[task].in_e:
            write_lines(folder / f"{task}_e.jsonl", [{**record, "_id": f"e{record['_id']}"} for record in records])
        (tmp_path / "mirror" / task).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(records), tmp_path / "mirror" / task / "test-0.parquet")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("../outside.jsonl", "")  # read in place, so it can go nowhere
        for path in folder.glob("*.jsonl"):
            archive.write(path, f"data/{path.name}")

    def content(rows: dict[str, Any]) -> Any:
        return {
            task: [(r.id, r.input, r.context, r.answers, r.length, r.all_classes) for r in members]
            for task, members in rows.items()
        }

    for source in (folder, tmp_path / "data.zip", tmp_path / "mirror"):
        assert content(read_rows(source, None, False)) == content(expected)
    in_e = read_rows(tmp_path / "data.zip", ("qasper",), True)
    assert [r.id for r in in_e["qasper"]] == ["eqasper-id-0", "eqasper-id-1"]
    assert not (tmp_path.parent / "outside.jsonl").exists()


def test_what_a_folder_leaves_out_is_said(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.pdf").write_bytes(b"%PDF-")
    (tmp_path / "README.md").write_text("about")
    assert read_rows(tmp_path, None, False) == read_rows(whole, None, False)
    assert "left out 1 of 2 files (.pdf 1), only .jsonl files are read" in capsys.readouterr().err


def test_tolerated_rows(tmp_path: Path) -> None:
    first = row("trec", 0)
    second = {"question": "Type:", "context": "c", "answers": "Date"}  # no id, no classes, no length, one answer
    (a, b) = read_rows(write_lines(tmp_path / "trec.jsonl", [first, second]), None, False)["trec"]
    assert (b.id, b.input, b.answers, b.length, b.all_classes) == ("trec-1", "Type:", ("Date",), None, a.all_classes)


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("qasper.jsonl", [row("qasper", 0), row("qasper", 0)], "qasper.jsonl:2: qasper: _id 'qasper-id-0' is at"),
        ("qasper.jsonl", [row("hotpotqa", 0)], "a line of 'hotpotqa' in a file of 'qasper'"),
        ("rows.jsonl", [row("qasper", 0, dataset="quasper")], "not a LongBench task: 'quasper'"),
        ("qasper.jsonl", [{"input": "x", "answers": ["y"]}], "no text under 'context'"),
        ("qasper.jsonl", [row("qasper", 0, answers=[])], "no gold answers"),
        ("qasper.jsonl", [row("qasper", 0, answers=[1])], "'answers' is not a list of texts"),
        ("trec.jsonl", [row("trec", 0, all_classes=None)], "trec needs all_classes"),
        ("passage_retrieval_en.jsonl", [row("passage_retrieval_en", 0, answers=["2"])], "names no paragraph"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, name: str, records: Sequence[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_rows(write_lines(tmp_path / name, records), None, False)


def test_files_that_cannot_be_read(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_rows(tmp_path / "nowhere", None, False)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("qasper.jsonl", json.dumps({"context": "word " * 99}))
    damaged = (tmp_path / "bad.zip").read_bytes()
    (tmp_path / "bad.zip").write_bytes(damaged[:42] + b"\xff" * 8 + damaged[50:])
    with pytest.raises(UserError, match=r"bad\.zip:qasper\.jsonl: cannot read"):
        read_rows(tmp_path / "bad.zip", None, False)
    (tmp_path / "data.zip").write_bytes(b"PK not")
    with pytest.raises(UserError, match="cannot read"):
        read_rows(tmp_path / "data.zip", None, False)
    whole.write_text(whole.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    with pytest.raises(UserError, match=r"rows.jsonl:42: not JSON"):
        read_rows(whole, None, False)
    with pytest.raises(UserError, match="holds no qasper_e"):
        read_rows(write_lines(tmp_path / "qasper.jsonl", [row("qasper", 0)]), ("qasper",), True)


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_prompts_that_fit_are_the_official_text(tiny_tokenizer: Any, whole: Path) -> None:
    rows = read_rows(whole, None, False)
    builder = PromptBuilder(tiny_tokenizer, 4000)
    for name, task in TASKS.items():
        made, truncated = builder.build(task, rows[name][0])
        text = task.prompt.format(context=rows[name][0].context, input=rows[name][0].input)
        whole_text = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" if task.chat else text
        assert tiny_tokenizer.decode(made) == whole_text
        assert not truncated
        # The document's own <|im_end|> is text: the frame's is the only one.
        assert made.count(2) == int(task.chat)


def test_long_prompts_lose_their_middle_before_the_chat_template(tiny_tokenizer: Any, whole: Path) -> None:
    source = read_rows(whole, None, False)["qasper"][0]
    task = TASKS["qasper"]
    ids = tiny_tokenizer.encode(
        task.prompt.format(context=source.context, input=source.input), split_special_tokens=True
    )
    for limit in (401, len(ids) - 1):
        made, truncated = PromptBuilder(tiny_tokenizer, limit).build(task, source)
        half = limit // 2
        kept = tiny_tokenizer.decode(ids[:half]) + tiny_tokenizer.decode(ids[-half:])
        assert truncated
        assert tiny_tokenizer.decode(made) == f"<|im_start|>user\n{kept}<|im_end|>\n<|im_start|>assistant\n"
    assert not PromptBuilder(tiny_tokenizer, len(ids)).build(task, source)[1]


def test_a_template_that_strips_is_followed(whole: Path) -> None:
    from tests.conftest import CHATML, make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML.replace("message['content']", "message['content'] | trim")
    made, _ = PromptBuilder(tokenizer, 4000).build(
        TASKS["passage_count"], read_rows(whole, None, False)["passage_count"][0]
    )
    assert "The final answer is:<|im_end|>" in tokenizer.decode(made)


# -- a run -------------------------------------------------------------------------------------------------------------


def recipe(model: Path, data: Path, **settings: Any) -> EvalRecipe:
    return EvalRecipe(model=str(model), longbench=LongBenchSettings(data=data, **settings))


def test_with_the_transformers_engine(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_lines(
        tmp_path / "rows.jsonl", [row(task, n) for task in ("qasper", "samsum", "hotpotqa") for n in (0, 1)]
    )
    out = tmp_path / "out"
    arguments = ["longbench", "--data", str(data), "--model", str(tiny_model_dir), "--tasks", "samsum,qasper"]
    arguments += ["engine.max_model_len=1300", "-o", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "LongBench samsum" in printed
    assert "no official scores" in printed
    result = read_results(out).tasks["longbench"]
    assert [sample.id.split("/")[0] for sample in result.samples] == ["qasper"] * 2 + ["samsum"] * 2
    assert {metric.key for metric in result.metrics} == {"task:qasper", "task:samsum", "truncated"}
    lines = [json.loads(line) for line in (out / "predictions/longbench/samsum.jsonl").open(encoding="utf-8")]
    newline = 3 + sorted_alphabet().index("Ċ")
    for line in lines:
        assert newline in line["stop_ids"]
        assert line["num_response_tokens"] >= 1
        assert {"pred", "answers", "all_classes", "length", "id", "prompt_hash"} <= line.keys()
    before = (out / "results.json").read_bytes()
    assert main(arguments) == 0
    assert (out / "results.json").read_bytes() == before
    # What was written can be scored again, and by the official script too.
    outcome, e = score_predictions(out, e=False, code_sim="rapidfuzz")
    ours = read_results(out).tasks["longbench"]
    assert [sample.cluster for sample in outcome.samples] == [sample.cluster for sample in ours.samples]
    assert not any("resampled one by one" in said for said in outcome.notes)
    assert not e
    assert [s.scores["task:qasper"] for s in outcome.samples[:2]] == [
        s.scores["task:qasper"] for s in result.samples[:2]
    ]
    assert main(["score", str(out), "-o", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["benchmark"] == "LongBench"


def test_a_response_of_at_least_one_token(tiny_model: Any, tiny_tokenizer: Any) -> None:
    from logodata.engines import GenerationRequest, Sampling
    from logodata.engines.transformers_engine import TransformersEngine

    engine = TransformersEngine(tiny_model)

    def answer(sampling: Sampling) -> tuple[int, ...]:
        (result,) = engine.generate([GenerationRequest("a", (5, 6, 7), sampling)])
        return result.token_ids

    (first, *_) = answer(Sampling(4, (2,)))
    assert answer(Sampling(4, (2, first))) == ()
    longer = answer(Sampling(4, (2, first), min_new_tokens=1))
    assert len(longer) >= 1
    assert first not in longer


def sorted_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def test_resumed_in_the_middle_of_a_line(
    tiny_model_dir: Path, tmp_path: Path, fake_answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_lines(tmp_path / "qasper.jsonl", [row("qasper", number) for number in range(5)])
    wanted = recipe(tiny_model_dir, data)
    monkeypatch.setattr(Session, "engine", FakeEngine(fake_answer))
    expected = evaluate(wanted, ["longbench"], tmp_path / "a").tasks["longbench"]
    monkeypatch.setattr(Session, "engine", FakeEngine(fake_answer, limit=3))
    with pytest.raises(KeyboardInterrupt):
        evaluate(wanted, ["longbench"], tmp_path / "b")
    shard = tmp_path / "b" / "predictions" / "longbench" / "qasper.jsonl"
    shard.write_bytes(shard.read_bytes()[:-30])  # killed while it wrote the third
    rest = FakeEngine(fake_answer)
    monkeypatch.setattr(Session, "engine", rest)
    found = evaluate(wanted, ["longbench"], tmp_path / "b").tasks["longbench"]
    assert rest.answered == 3
    assert (found.samples, found.summary, found.notes) == (expected.samples, expected.summary, expected.notes)


def test_other_rows_are_refused(
    tiny_model_dir: Path, tmp_path: Path, fake_answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "engine", FakeEngine(fake_answer))
    data = write_lines(tmp_path / "one" / "qasper.jsonl", [row("qasper", 0)])
    other = write_lines(tmp_path / "two" / "qasper.jsonl", [row("qasper", 0, answers=["another"])])
    evaluate(recipe(tiny_model_dir, data), ["longbench"], tmp_path / "out")
    with pytest.raises(UserError, match="rows_fingerprint"):
        evaluate(recipe(tiny_model_dir, other), ["longbench"], tmp_path / "out")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--tasks", "qaspr"], "did you mean 'qasper'?"),
        (["--tasks", "musique", "-e"], "no task of LongBench-E"),
        (["-e"], "holds no LongBench-E rows"),
        (["engine.max_model_len=600"], "the fixed part of"),
        (["longbench.code_sim=editdistance"], "code_sim"),
    ],
)
def test_user_errors_are_one_line(
    extra: list[str],
    message: str,
    tiny_model_dir: Path,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["longbench", "--data", str(whole), "--model", str(tiny_model_dir), "-o", str(tmp_path / "out"), *extra]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# -- averages ----------------------------------------------------------------------------------------------------------


def scored(scores: dict[str, Sequence[float]], lengths: Sequence[int] = (1000,)) -> list[Scored]:
    return [
        Scored(str(n), TASKS[name], f"{name}/{n}", "h", score, False, lengths[n % len(lengths)], False)
        for name, members in scores.items()
        for n, score in enumerate(members)
    ]


def summary(samples: Sequence[Scored], *, e: bool = False) -> dict[tuple[str, str], float]:
    reported = metrics(list({sample.task.name: sample.task for sample in samples}.values()), e=e, truncation=False)
    rows = summarise(reported, sample_rows(samples, reported, e=e))
    return {(row.metric, str(row.slice.get("words", ""))): row.value for row in rows}


def test_averages_are_means_of_means() -> None:
    # Tasks of unequal size: a mean over samples would be another number.
    values = {name: [0.01 * number] * (2 + number % 3) for number, name in enumerate(TASKS)}
    found = summary(scored(values))
    mean = {name: members[0] for name, members in values.items()}
    for kind, pool in (("logo", [t for t in TASKS.values() if t.language == "en"]), ("all", list(TASKS.values()))):
        means = []
        for category in CATEGORIES:
            members = [mean[task.name] for task in pool if task.category == category]
            if members:
                means.append(sum(members) / len(members))
                assert found[f"{kind}:{category}", ""] == pytest.approx(means[-1])
        assert found[kind, ""] == pytest.approx(sum(means) / len(means))
    assert len(means) == 6
    assert ("logo:code", "") not in found


def test_a_part_has_no_average() -> None:
    values = {name: [0.5, 0.5] for name in TASKS if name != "musique"}
    found = summary(scored(values))
    assert not {("logo", ""), ("all", ""), ("logo:multi-doc QA", ""), ("all:multi-doc QA", "")} & found.keys()
    assert ("logo:single-doc QA", "") in found
    samples = scored(values)
    (part, count, *_) = notes(samples, e=False, code_sim="rapidfuzz")
    assert part.endswith("averages over: musique")
    assert "40 samples, where LongBench has 4,550" in count


@pytest.mark.parametrize("e", [False, True])
def test_only_all_rows_are_the_official_scores(e: bool) -> None:
    names = [name for name, task in TASKS.items() if task.in_e or not e]
    whole = scored({name: [0.5] * official_rows([name], e=e) for name in names})
    assert len(whole) == official_rows(names, e=e) == (3668 if e else 4750)

    def warnings(samples: Sequence[Scored]) -> list[str]:
        return [text for text in notes(samples, e=e, code_sim="rapidfuzz") if "no official scores" in text]

    assert not warnings(whole)
    few = scored({name: [0.5, 0.5] for name in names})
    assert ("e" if e else "all", "") in summary(few, e=e)  # the average stands: the note must qualify it
    (text,) = warnings(few)
    benchmark = "LongBench-E has 3,668" if e else "LongBench has 4,750"
    assert text.startswith(f"{2 * len(names)} samples, where {benchmark} of these tasks")


def test_length_groups_and_empty_ones() -> None:
    assert [bucket(length) for length in (0, 3999, 4000, 7999, 8000)] == ["0-4k", "0-4k", "4-8k", "4-8k", "8k+"]
    samples = scored({"qasper": [0.0, 1.0, 0.5, 0.5]}, lengths=(3999, 4000))
    found = summary(samples, e=True)
    assert found["task:qasper", "0-4k words"] == 0.25
    assert found["task:qasper", "4-8k words"] == 0.75
    assert "qasper_e: no samples of 8k+ words" in list(notes(samples, e=True, code_sim="rapidfuzz"))


@pytest.mark.parametrize("lengths", [(9000, 100, None, 5000), (None, 5000, 9000, 100)])
def test_bands_of_lengths_stand_in_their_order(tmp_path: Path, lengths: tuple[int | None, ...]) -> None:
    """Whichever comes first in the files: in what score prints and writes, and in every table of a report."""
    lines = [
        {"pred": "x", "answers": ["x"], "all_classes": None, "length": length, "_id": str(number)}
        for number, length in enumerate(lengths)
    ]
    source = write_lines(tmp_path / "p" / "qasper_e.jsonl", lines).parent
    write_lines(source / "2wikimqa_e.jsonl", lines[::-1])
    assert main(["score", str(source), "-o", str(tmp_path / "s.json")]) == 0
    bands = ["0-4k words", "4-8k words", "8k+ words", "unknown length"]
    told = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["summary"]
    for task in ("qasper", "2wikimqa"):
        assert [r["slice"]["words"] for r in told if r["metric"] == f"task:{task}" and r["slice"]] == bands
    outcome, _ = score_predictions(source, e=True, code_sim="rapidfuzz")
    settings = {"tasks": ["qasper", "2wikimqa"], "e": True, "max_prompt_tokens": None, "code_sim": "rapidfuzz"}
    runs = [tmp_path / "a", tmp_path / "b"]
    for run in runs:
        run.mkdir()
        result = task_result("longbench", replace(outcome, settings=settings), adapter=None)
        write_results(run, Results(tasks={"longbench": result}))
    comparison = compare(runs)
    assert [r.slice["words"] for r in comparison.rows if r.metric.key == "task:qasper" and r.slice] == bands
    page = render(comparison)
    places = [page.index(band, page.index("LongBench-E by task and length")) for band in bands]
    assert places == sorted(places)


# -- score and compare -------------------------------------------------------------------------------------------------


def official(task: str, preds: Sequence[str], start: int = 0) -> list[dict[str, Any]]:
    return [
        {"pred": pred, **{key: row(task, start + n)[key] for key in ("answers", "all_classes", "length")}}
        for n, pred in enumerate(preds)
    ]


def test_official_files_are_scored(tmp_path: Path) -> None:
    write_lines(tmp_path / "p" / "trec.jsonl", official("trec", ["\nDate\nDate Place", "Place"]))
    write_lines(tmp_path / "p" / "qasper.jsonl", official("qasper", ["bridge", "none"]))
    out = tmp_path / "new" / "folder" / "scores.json"
    assert main(["score", str(tmp_path / "p"), "-o", str(out)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["benchmark"] == "LongBench"
    outcome, e = score_predictions(tmp_path / "p", e=False, code_sim="difflib")
    values = {row.metric: row.value for row in summarise(outcome.metrics, outcome.samples)}
    assert (e, values) == (False, {"task:qasper": 0.5, "task:trec": 0.5})
    (tmp_path / "p").rename(tmp_path / "q")
    assert score_predictions(tmp_path / "q", e=True, code_sim="difflib")[1]
    (tmp_path / "q" / "trec.jsonl").rename(tmp_path / "q" / "trec_e.jsonl")
    with pytest.raises(UserError, match=r"of LongBench-E .* together"):
        score_predictions(tmp_path / "q", e=False, code_sim="difflib")


def test_lengths_stand_in_columns_a_row_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("qasper", "trec"):
        lines = official(task, ["bridge", "Date", "Place", "none"])
        lengths = (3000, 5000, 9000, 100)
        rows = [{**line, "length": length} for line, length in zip(lines, lengths, strict=True)]
        write_lines(tmp_path / f"{task}_e.jsonl", rows)
    assert main(["score", str(tmp_path)]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["by", "part", "mean", "0-4k", "words", "4-8k", "words", "8k+", "words"] in said
    assert sum(line[:2] == ["LongBench", "qasper_e"] for line in said) == 2
    assert not any(line[:1] == ["0-4k"] for line in said)


def test_files_of_other_tools_are_scored_as_the_official_ones(tmp_path: Path) -> None:
    lines = official("qasper", ["bridge", "none"])
    (tmp_path / "official").mkdir()
    write_lines(tmp_path / "official" / "qasper.jsonl", lines)
    logo = [
        {"dataset_name": "qasper", "pred_str": line["pred"], "answers": line["answers"], "length": line["length"]}
        for line in lines
    ]
    write_lines(tmp_path / "logo" / "all.jsonl", logo)
    harness = [
        {
            "doc_id": number,
            "doc": {"dataset": "qasper", **{key: value for key, value in line.items() if key != "pred"}},
            "target": line["answers"],
            "resps": [["unfiltered"]],
            "filtered_resps": [line["pred"]],
            "filter": "none",
        }
        for number, line in enumerate(lines)
    ]
    write_lines(tmp_path / "harness" / "samples_longbench_qasper_2026-11-30T12-00-00.jsonl", harness)
    found = {
        name: [sample.scores for sample in score_predictions(tmp_path / name, e=False, code_sim="rapidfuzz")[0].samples]
        for name in ("official", "logo", "harness")
    }
    assert found["logo"] == found["harness"] == found["official"]
    assert len(found["official"]) == 2


def test_an_unknown_file_is_told_with_the_command_that_renames_its_fields(tmp_path: Path) -> None:
    lines = [{"id": "a", "model_output": "bridge", "gold_answers": ["bridge"]}]
    write_lines(tmp_path / "qasper.jsonl", lines)
    with pytest.raises(UserError) as caught:
        score_predictions(tmp_path, e=False, code_sim="rapidfuzz")
    command = (
        "jq -c '{pred: .model_output, answers: .gold_answers, all_classes, length}' qasper.jsonl > renamed/TASK.jsonl"
    )
    assert command in str(caught.value)


def test_scores_that_can_be_written_nowhere_are_not_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "qasper.jsonl", official("qasper", ["bridge"]))
    assert main(["score", str(source), "-o", str(source / "scores.json")]) == 2
    said = capsys.readouterr()
    assert "qasper.jsonl: a file, not a folder" in said.err
    assert said.err.count("\n") == 1
    assert not said.out


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("qasper.jsonl", official("qasper", ["x"] * 12) * 2, "answers the same samples as the first"),
        ("qasper.jsonl", official("qasper", ["x"] * 201), "201 lines, LongBench has 200 rows"),
        ("qasper.jsonl", [{**official("qasper", ["x"])[0], "_id": "a"}] * 2, "id 'a' is at"),
        (
            "qasper.jsonl",
            [{**official("qasper", ["x"])[0], "_id": "a"}, *official("qasper", ["x"])],
            "has no id, others",
        ),
        ("qasper.jsonl", [{**official("qasper", ["x"])[0], "task": "hotpotqa"}], "a line of 'hotpotqa'"),
        ("qasper.jsonl", [{"answers": ["x"]}], "no text under 'pred'"),
        ("musique_e.jsonl", official("musique", ["x"]), "not a LongBench task"),
        ("unknown.jsonl", official("qasper", ["x"]), "not a LongBench task"),
    ],
)
def test_predictions_that_cannot_be_scored(
    tmp_path: Path, name: str, lines: Sequence[dict[str, Any]], message: str
) -> None:
    write_lines(tmp_path / name, lines)
    with pytest.raises(UserError, match=message):
        score_predictions(tmp_path, e=False, code_sim="rapidfuzz")


def test_two_runs_compare_by_category_and_task(
    whole: Path, tiny_model_dir: Path, tmp_path: Path, fake_answer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    for name, shift in (("before", 0), ("after", 1)):
        engine = FakeEngine(lambda r, shift=shift: fake_answer(replace(r, prompt_ids=(*r.prompt_ids, shift))))  # type: ignore[misc]
        monkeypatch.setattr(Session, "engine", engine)
        evaluate(recipe(tiny_model_dir, whole), ["longbench"], tmp_path / name)
    comparison = compare([tmp_path / "before", tmp_path / "after"])
    rows = {row.metric.key: row for row in comparison.rows if not row.slice}
    assert [row.metric.key for row in rows.values() if row.metric.headline] == ["logo", "all"]
    assert rows["logo"].num_samples == 28
    for row in rows.values():
        first, second = (value.value for value in row.values)
        assert row.differences[0].change.value == pytest.approx(second - first)
    page = render(comparison)
    assert "LongBench few-shot, LOGO" in page
    assert "LongBench repobench-p" in page
