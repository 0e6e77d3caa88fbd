"""Pairs that cannot be used end in one line, or are counted with their reason."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logodata.cli import main
from logodata.common import json_files

Row = dict[str, Any]

GOOD: Row = {"prompt": "How many?", "chosen": " Four.", "rejected": " Five."}


def user(text: Any) -> Row:
    return {"role": "user", "content": text}


def said(text: Any) -> Row:
    return {"role": "assistant", "content": text}


TALK: Row = {"prompt": [user("How many?")], "chosen": [said("Four.")], "rejected": [said("Five.")]}
IMPLICIT: Row = {"chosen": [user("How many?"), said("Four.")], "rejected": [user("How many?"), said("Five.")]}
SHARE: Row = {
    "conversations": [{"from": "human", "value": "How many?"}],
    "chosen": {"from": "gpt", "value": "Four."},
    "rejected": {"from": "gpt", "value": "Five."},
}
RATED: Row = {
    "instruction": "How many?",
    "completions": [{"response": "Four.", "overall_score": 5}, {"response": "Five.", "overall_score": 1}],
}
ALPACA: Row = {"instruction": "How many?", "chosen": "Four.", "rejected": "Five."}


def tables(*names: str) -> Callable[[Path], str]:
    """A folder of tables with one pair each, whose prompt is the table's name."""

    def make(folder: Path) -> str:
        (folder / "tables").mkdir()
        for name in names:
            text = f"prompt,chosen,rejected\n{name}, Four., Five.\n"
            if "json" in name:
                text = json.dumps({**GOOD, "prompt": name})
            data = text.encode()
            (folder / "tables" / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(folder / "tables")

    return make


REASONS: dict[str, tuple[Row, Row, str]] = {
    # beside a good row of the same form, a row and the reason why it is left out
    "equal texts": (GOOD, {**GOOD, "rejected": " Four."}, "equal_responses"),
    "equal messages": (TALK, {**TALK, "rejected": TALK["chosen"]}, "equal_responses"),
    "equal conversations": (IMPLICIT, {**IMPLICIT, "rejected": IMPLICIT["chosen"]}, "equal_responses"),
    "one of several is equal": (GOOD, {**GOOD, "rejected": [" Five.", " Four."]}, "equal_responses"),
    "null prompt": (GOOD, {**GOOD, "prompt": None, "chosen": None}, "missing_prompt"),
    "null chosen": (GOOD, {**GOOD, "chosen": None}, "missing_chosen"),
    "null rejected": (TALK, {**TALK, "rejected": None}, "missing_rejected"),
    "empty prompt": (GOOD, {**GOOD, "prompt": " \n"}, "empty_prompt"),
    "empty list of messages": (TALK, {**TALK, "prompt": []}, "empty_prompt"),
    "empty chosen": (GOOD, {**GOOD, "chosen": "  "}, "empty_chosen"),
    "empty rejected": (TALK, {**TALK, "rejected": [said("")]}, "empty_rejected"),
    "no rejected in the list": (GOOD, {**GOOD, "rejected": []}, "empty_rejected"),
    "chosen is a list of several": (GOOD, {**GOOD, "chosen": [" Four.", " IV."]}, "several_chosen"),
    "rejected holds a number": (GOOD, {**GOOD, "rejected": [5]}, "not_a_text"),
    "rejected is a number": (GOOD, {**GOOD, "rejected": 5}, "not_a_text"),
    "content is a number": (TALK, {**TALK, "prompt": [user(4)]}, "not_a_text"),
    "content is null": (TALK, {**TALK, "prompt": [user(None)]}, "not_a_text"),
    "a message is a text": (TALK, {**TALK, "prompt": ["How many?"]}, "not_messages"),
    "role is not known": (TALK, {**TALK, "prompt": [{"role": "narrator", "content": "x"}]}, "role_unknown"),
    "role is absent": (TALK, {**TALK, "prompt": [{"content": "x"}]}, "role_unknown"),
    "from is not known": (SHARE, {**SHARE, "chosen": {"from": "critic", "value": "{}"}}, "role_unknown"),
    "a column of images": (TALK, {**TALK, "images": ["x.png"]}, "content_is_not_text"),
    "an image": (TALK, {**TALK, "prompt": [user([{"type": "image_url", "image_url": "x"}])]}, "content_is_not_text"),
    "text in parts": (
        TALK,
        {**TALK, "prompt": [user([{"type": "text", "text": "How"}, {"type": "text", "text": " many?"}])]},
        "content_in_parts",
    ),
    "the last message is the user's": (TALK, {**TALK, "chosen": [user("Four.")]}, "response_is_not_the_assistants"),
    "the prompt ends with an answer": (
        TALK,
        {**TALK, "prompt": [user("How many?"), said("Well")]},
        "prompt_ends_with_assistant",
    ),
    "the prompt is a system message": (
        TALK,
        {**TALK, "prompt": [{"role": "system", "content": "Be brief."}]},
        "prompt_ends_with_system",
    ),
    "a system message in the middle": (
        TALK,
        {**TALK, "prompt": [user("Hello."), {"role": "system", "content": "Be brief."}, user("How many?")]},
        "system_message_not_first",
    ),
    "two answers in a row": (
        TALK,
        {**TALK, "prompt": [user("Hello."), said("Hi."), said("Yes?"), user("How many?")]},
        "assistant_twice_in_a_row",
    ),
    "a response of two turns": (
        IMPLICIT,
        {**IMPLICIT, "chosen": [user("How many?"), said("What?"), user("Sacks."), said("Four.")]},
        "response_of_several_turns",
    ),
    "rejected stops at the prompt": (TALK, {**TALK, "rejected": [[]]}, "empty_rejected"),
    "nothing in common": (
        IMPLICIT,
        {**IMPLICIT, "rejected": [user("How much?"), said("Five.")]},
        "no_shared_prompt",
    ),
    "texts with nothing in common": (
        {"chosen": "Q: how many? A: four", "rejected": "Q: how many? A: five"},
        {"chosen": "Yes it is", "rejected": "No it is not"},
        "no_shared_prompt",
    ),
    "several turns of a dialogue": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes?", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: A\n\nAssistant: B",
            "rejected": "\n\nHuman: Hi\n\nAssistant: No.",
        },
        "response_of_several_turns",
    ),
    "the prompt is not what they begin with": (
        {**IMPLICIT, "prompt": "How many?"},
        {**IMPLICIT, "prompt": "Who was it?"},
        "prompt_is_no_prefix",
    ),
    "scores tie": (
        {**GOOD, "score_chosen": 5, "score_rejected": 1},
        {**GOOD, "score_chosen": 5, "score_rejected": 5},
        "tied_scores",
    ),
    "scores are the other way round": (
        GOOD,
        {**GOOD, "score_chosen": 1, "score_rejected": 5},
        "scores_say_the_opposite",
    ),
    "a score is nan": (GOOD, {**GOOD, "score_chosen": float("nan"), "score_rejected": 5}, "score_is_no_number"),
    "all completions tie": (
        RATED,
        {**RATED, "completions": [{"response": "a", "overall_score": 3}, {"response": "b", "overall_score": 3}]},
        "tied_scores",
    ),
    "a rating is nan": (
        RATED,
        {**RATED, "completions": [{"response": "a", "overall_score": float("nan")}]},
        "score_is_no_number",
    ),
    "a rating is a word": (
        RATED,
        {**RATED, "completions": [{"response": "a", "overall_score": "N/A"}]},
        "score_is_no_number",
    ),
    "no completion": (RATED, {**RATED, "completions": []}, "missing_chosen"),
    "tools are not JSON": (TALK, {**TALK, "tools": "[{'name'"}, "tools_not_json"),
    "tools are a number": (TALK, {**TALK, "tools": 3}, "tools_not_json"),
    "the template has no tools": (TALK, {**TALK, "tools": [{"name": "count"}]}, "template_ignores_tools"),
    "the template has no calls": (
        TALK,
        {**TALK, "chosen": [{**said(""), "tool_calls": [{"function": {"name": "count", "arguments": {}}}]}]},
        "template_ignores_tool_calls",
    ),
    "the template has no calls of earlier turns": (
        SHARE,
        {
            **SHARE,
            "conversations": [
                *SHARE["conversations"],
                {"from": "function_call", "value": '{"name": "count", "arguments": {}}'},
                {"from": "observation", "value": "4"},
            ],
        },
        "template_ignores_tool_calls",
    ),
    "a call is not JSON": (
        SHARE,
        {**SHARE, "chosen": {"from": "function_call", "value": "count()"}},
        "tool_calls_not_json",
    ),
    "a call has no name": (
        SHARE,
        {**SHARE, "chosen": {"from": "function_call", "value": '{"arguments": {}}'}},
        "tool_calls_not_json",
    ),
    "half a character in a call": (
        SHARE,
        {**SHARE, "chosen": {"from": "function_call", "value": '{"name": "\\ud83d", "arguments": {}}'}},
        "unpaired_surrogate",
    ),
    "history is no pairs": (ALPACA, {**ALPACA, "history": ["a", "b"]}, "history_not_pairs"),
    "two system messages": (
        {**SHARE, "system": "Be brief."},
        {**SHARE, "system": "a", "conversations": [{"from": "system", "value": "b"}, *SHARE["conversations"]]},
        "two_system_messages",
    ),
    "a NUL character": (GOOD, {**GOOD, "prompt": "How\0many?"}, "nul_character"),
    "half a character": (GOOD, {**GOOD, "chosen": "\ud83d"}, "unpaired_surrogate"),
    "half a character in a tool": (TALK, {**TALK, "tools": [{"name": "\ud83d"}]}, "unpaired_surrogate"),
    "longer than the window": (GOOD, {**GOOD, "prompt": "many " * 3000}, "exceeds_window"),
    "the response is longer": (GOOD, {**GOOD, "rejected": "many " * 3000}, "exceeds_window"),
}


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., int]:
    def import_(path: object, *words: str) -> int:
        return main(["import", str(path), "--model", str(tiny_model_dir), "-o", str(tmp_path / "out"), *words])

    return import_


def write(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", REASONS)
def test_a_row_is_counted_with_its_reason(name: str, run: Callable[..., int], tmp_path: Path) -> None:
    good, bad, reason = REASONS[name]
    assert run(write(tmp_path / "pairs.jsonl", good, bad)) == 0
    [row] = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert (row["reason"], row["stage"], row["where"]) == (reason, "import", f"{tmp_path}/pairs.jsonl:2")
    assert len(row["detail"]) > 10
    assert json.loads((tmp_path / "out" / "stats.json").read_text())["kept"] == 1


@pytest.mark.parametrize("name", ["equal texts", "role is not known", "a rating is nan", "exceeds"])
def test_if_nothing_is_left_the_command_fails(
    name: str, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, bad, reason = REASONS[name if name in REASONS else "longer than the window"]
    words = () if name != "role is not known" else ("--format", "conversational")
    assert run(write(tmp_path / "pairs.jsonl", bad), *words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"no pair was kept: kept 0 of 1 pairs; not kept: {reason} 1" in line
    assert f"{tmp_path}/pairs.jsonl:1: " in line
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert (tmp_path / "out" / "rejected.jsonl").exists()


def lines(*rows: Row | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "pairs.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return make


def bytes_of(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def splits(ending: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        from datasets import Dataset, DatasetDict

        data = Dataset.from_list([GOOD])
        DatasetDict({"train_prefs": data, "test_prefs": data}).save_to_disk(str(folder / "saved"))
        return f"{folder / 'saved'}{ending}"

    return make


def factory(info: Any, ending: str = "") -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "lf").mkdir()
        (folder / "lf" / "dataset_info.json").write_text(json.dumps(info))
        write(folder / "lf" / "a.jsonl", ALPACA)
        return f"{folder / 'lf'}{ending}"

    return make


def broken_list(folder: Path) -> Path:
    factory({"a": ENTRY})(folder)
    (folder / "lf" / "dataset_info.json").write_text("broken")
    return folder / "lf"


def built(folder: Path) -> Path:
    from tests.data_sets import write_manifest

    (folder / "built").mkdir()
    write_manifest(folder / "built")
    return folder / "built"


def texts(folder: Path) -> Path:
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("A text.")
    return folder / "texts"


ENTRY = {"file_name": "a.jsonl", "ranking": True}
LINES: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    # what is given, further words, and what the line says
    "no such file": (lambda folder: folder / "nowhere.jsonl", (), "no such file"),
    "an empty file": (bytes_of("a.jsonl", b""), (), "holds no pair"),
    "an empty file, and its form": (bytes_of("a.jsonl", b""), ("--format", "standard"), "holds no pair"),
    "a list of nothing": (bytes_of("a.json", b"[]"), (), "holds no pair"),
    "three forms": (
        lines(GOOD, TALK, GOOD, SHARE),
        (),
        "rows of 3 forms: standard in {folder}/pairs.jsonl:1, {folder}/pairs.jsonl:3; conversational in "
        "{folder}/pairs.jsonl:2; sharegpt in {folder}/pairs.jsonl:4",
    ),
    "two kinds of responses": (lines(GOOD, {**GOOD, "chosen": [said("Four.")]}), (), "rows of 2 forms: standard in"),
    "a column is missing": (
        lines({"prompt": "a", "choosen": "b", "rejected": "c"}),
        (),
        "no row has a field 'chosen' (set columns.chosen=YOUR_COLUMN; did you mean 'choosen'? found: prompt, choosen",
    ),
    "no column is known": (
        lines({"a": 1, "b": 2}),
        (),
        "no row has a field 'chosen' (set columns.chosen=YOUR_COLUMN; found: a, b)",
    ),
    "only null": (lines({**GOOD, "rejected": None}), (), "no row has a field 'rejected'"),
    "a column that is not there": (
        lines(GOOD),
        ("columns.chosen=chosn",),
        "no row has a column 'chosn' (set columns.chosen=YOUR_COLUMN; did you mean 'chosen'?)",
    ),
    "a column that is not there, of a form that was named": (
        lines({"instruction": "a", "chosen": "b", "rejected": "c", "system_text": "d"}),
        ("format=alpaca", "columns.system=sytem_text"),
        "no row has a column 'sytem_text' (set columns.system=YOUR_COLUMN; did you mean 'system_text'?)",
    ),
    "a subset of a file": (lines(GOOD), ("subset=small",), "a table of format jsonl has no subset (leave subset out)"),
    "tables of several splits": (
        tables("train.csv", "test.csv"),
        (),
        "holds several splits: test, train (write {folder}/tables:NAME)",
    ),
    "packed tables of several splits": (
        tables("train.jsonl.gz", "test.jsonl.gz"),
        (),
        "holds several splits: test, train (write {folder}/tables:NAME)",
    ),
    "packed tables and documents": (tables("train.jsonl.gz", "a.txt"), (), "documents, not a table"),
    "a field that is not there": (
        lines(GOOD),
        ("columns.better=chosen",),
        "'better' is not a field, the fields are id,",
    ),
    "the same id twice": (
        lines({**GOOD, "id": "a"}, {**GOOD, "id": "a", "prompt": "Who?"}),
        (),
        "pairs.jsonl:2: pair id 'a' stands at {folder}/pairs.jsonl:1 too",
    ),
    "not JSON": (lines(GOOD, '{"prompt": '), (), "pairs.jsonl:2: not valid JSON"),
    "a number in a line": (lines(GOOD, "5"), (), "pairs.jsonl:2: a JSON int, not an object"),
    "a key twice": (lines('{"prompt": "a", "prompt": "b"}'), (), "key 'prompt' occurs twice"),
    "UTF-16": (bytes_of("a.jsonl", json.dumps(GOOD).encode("utf-16")), (), "not UTF-8: it is UTF-16"),
    "gzip, cut": (bytes_of("a.jsonl.gz", b"\x1f\x8b\x08\x00"), (), "cannot be unpacked"),
    "no parquet": (bytes_of("a.parquet", b"PAR1"), (), "cannot read as parquet"),
    "a text file": (bytes_of("a.txt", b"A text."), (), "documents, not a table"),
    "a folder of texts": (texts, (), "holds no table (files: .txt 1) (give a JSON, CSV or parquet file"),
    "a file of no known form": (
        bytes_of("pairs", b"How many?"),
        (),
        "cannot be recognised (give a JSON, CSV or parquet",
    ),
    "a table in another encoding": (
        bytes_of("a.csv", "prompt,chosen,rejected\nCafé?,a,b".encode("cp1252")),
        (),
        "a.csv:2: not UTF-8: byte 3 (set encoding=NAME, such as cp1252; or save it as UTF-8",
    ),
    "a table in another encoding than the one that was named": (
        bytes_of("a.csv", "prompt,chosen,rejected\nCafé?,a,b".encode("cp1252")),
        ("encoding=ascii",),
        "a.csv: not ascii, in line 1 or after it (set encoding=NAME,",
    ),
    "a table without a header": (
        bytes_of("a.csv", b"How many?,Four.,Five.\nWho?,Ann.,Bob."),
        (),
        "no row has a field 'chosen' (set columns.chosen=YOUR_COLUMN; found: How many?, Four., Five.)",
    ),
    "a data set of ours": (built, (), "a data set already, not pairs"),
    "several splits": (splits(""), (), "holds several splits: train_prefs, test_prefs (write {folder}/saved:NAME)"),
    "a split that is not there": (
        splits(":train"),
        (),
        "no split 'train' (write {folder}/saved:NAME, one of train_prefs",
    ),
    "a split of a file": (lambda folder: f"{lines(GOOD)(folder)}:train", (), "a file has no splits"),
    "two data sets of LLaMA-Factory": (
        factory({"a": ENTRY, "b": ENTRY}),
        (),
        "holds 2 data sets of pairs (write {folder}/lf:NAME, one of a, b)",
    ),
    "none of LLaMA-Factory's has pairs": (
        factory({"a": {"file_name": "a.jsonl"}}),
        (),
        "no data set with ranking: true",
    ),
    "a data set that LLaMA-Factory has not": (factory({"a": ENTRY}, ":bb"), (), "no data set 'bb'"),
    "LLaMA-Factory's file is gone": (
        factory({"a": {"file_name": "gone.json", "ranking": True}}),
        (),
        "data set 'a' has no file here",
    ),
    "some prompts are rendered": (
        lines(GOOD, {**GOOD, "prompt": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"}),
        (),
        "1 prompts end with the chat template's frame, such as that of {folder}/pairs.jsonl:2, and 1 do not",
    ),
    "LLaMA-Factory's list is damaged": (
        broken_list,
        (),
        "lf/dataset_info.json: not valid JSON: Expecting value: line 1 column 1 (char 0) (correct it, or give",
    ),
    "no such template": (lines(TALK), ("chat_template=nowhere.jinja",), "nowhere.jinja: cannot read: No such file"),
    "a prompt of text is said of messages": (
        lines(TALK),
        ("--prompt", "plain"),
        "prompt=plain is for prompts of one text",
    ),
    "a form that is not there": (lines(GOOD), ("--format", "standart"), "did you mean 'standard'?"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_fault_of_the_whole_is_one_line(
    name: str, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words, expected = LINES[name]
    given = make(tmp_path)
    capsys.readouterr()
    assert run(given, *words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert expected.replace("{folder}", str(tmp_path)) in errors[0]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_enormous_line_is_not_read(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(json_files, "MAX_JSON_BYTES", 2000)
    assert run(write(tmp_path / "pairs.jsonl", GOOD, {**GOOD, "prompt": "many " * 500})) == 2
    assert "pairs.jsonl:2: a line of more than" in capsys.readouterr().err


TEMPLATES = {
    "no system": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
        {**TALK, "prompt": [{"role": "system", "content": "Be brief."}, user("How many?")]},
        "template_refuses",
    ),
    "roles alternate": (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}",
        {**TALK, "prompt": [user("Hello."), user("How many?")]},
        "template_refuses",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_the_template_refuses_is_counted(
    name: str, tmp_path: Path, run: Callable[..., int], tiny_tokenizer: Any
) -> None:
    refusal, bad, reason = TEMPLATES[name]
    (tmp_path / "template.jinja").write_text(refusal + tiny_tokenizer.chat_template)
    pairs = write(tmp_path / "pairs.jsonl", TALK, bad)
    assert run(pairs, f"chat_template={tmp_path / 'template.jinja'}") == 0
    [row] = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert row["reason"] == reason
    assert "the chat template fails: TemplateError" in row["detail"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        # writes nothing of a system message
        ("{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
         "{% if add_generation_prompt %}[assistant] {% endif %}", "template_changes_system"),
        # asks with a thought, and writes none
        ("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
         "{% if add_generation_prompt %}[assistant] Hm.{% endif %}", "template_moves_response"),
        # cuts the answer
        ("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] if m['role'] != 'assistant' else m['content'][:2] }}"
         "<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}", "template_changes_response"),
    ],
)  # fmt: skip
def test_a_template_that_loses_text_is_told(
    template: str, reason: str, tmp_path: Path, run: Callable[..., int]
) -> None:
    (tmp_path / "template.jinja").write_text(template)
    row = {**TALK, "prompt": [{"role": "system", "content": "Be brief."}, user("How many?")]}
    assert run(write(tmp_path / "pairs.jsonl", row), f"chat_template={tmp_path / 'template.jinja'}") == 2
    [found] = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert found["reason"] == reason
