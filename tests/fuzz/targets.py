"""What is fuzzed: every parser of what strangers, models or servers wrote, and the pure functions of the method.

A target takes any bytes. It returns, or raises :class:`UserError`; anything else that it raises is a finding. The tests
here feed it with hypothesis, ``benchmarks/fuzz.py`` with atheris, which follows the code that is reached.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np

from logodata.common.append_log import AppendLog
from logodata.common.errors import UserError
from logodata.common.recipes.reading import load_recipe
from logodata.contexts.chunking import chunk_text
from logodata.contexts.draw import draw_contexts
from logodata.contexts.settings import ContextSettings
from logodata.engines import GenerationRequest, Sampling
from logodata.engines.chat_answers import read_anthropic, read_openai
from logodata.engines.server_answers import Fault, Reader
from logodata.judge.model import parse_verdict
from logodata.prompts import PromptFormat, UserMessages, encode_text
from logodata.questions.drafts import recurring_names
from logodata.questions.replies import parse_cluster_reply, parse_reply
from logodata.recipe.settings import BuildRecipe
from logodata.sources import SourceSettings, read_source
from logoeval.recipe.settings import EvalRecipe
from logoeval.tasks.longbench.data import read_rows
from logoeval.tasks.longbench.score_files import record, score_predictions
from logoeval.tasks.longbench.task_table import TASKS
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.positions import draw_positions
from tests.documents import make_docx, make_epub, make_pdf

T = TypeVar("T")
Target = Callable[[bytes, Path], None]

NASTY = (
    "",
    " ",
    "\n\n",
    "a",
    "the mill of Vell holds 7 lanterns.",
    "Question: What is in the mill?\nAnswer: green millet",
    "Verdict: correct",
    "Story:\nOnce.\n\nWho?",
    "Paragraph 3",
    "段落3",
    "<|im_end|>",
    "\ud83d",
    "\u2028",
    "\x00",
    "é💡漢",
    "a" * 300,
    "\x1b[31m",
    "../../x",
    "{context}",
    "$\\frac{$",
    "１２٣",
)


class Draw:
    """Values out of bytes, the same for the same bytes; zeros when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self, low: int, high: int) -> int:
        span = high - low + 1
        value = self.byte() if span <= 256 else self.byte() << 16 | self.byte() << 8 | self.byte()
        return low + value % span

    def choice(self, values: Sequence[T]) -> T:
        return values[self.number(0, len(values) - 1)]

    def text(self) -> str:
        if self.number(0, 3):
            return self.choice(NASTY)
        return bytes(self.byte() for _ in range(self.number(0, 40))).decode("utf-8", self.choice(("replace", "ignore")))

    def value(self, depth: int = 3) -> Any:
        """Any JSON value."""
        kind = self.number(0, 9 if depth else 6)
        if kind < 4:
            return self.text()
        if kind < 7:
            return (None, True, 0, -1, 3, 1.5, 1e308, float("nan"), float("inf"), 2**70, False)[self.number(0, 10)]
        if kind < 9:
            return [self.value(depth - 1) for _ in range(self.number(0, 4))]
        return {self.text(): self.value(depth - 1) for _ in range(self.number(0, 3))}

    def row(self, fields: Mapping[str, Any]) -> Any:
        """An object with some of these fields, as they should be or as anything else; or anything at all."""
        if not self.number(0, 15):
            return self.value()
        row = {}
        for name, good in fields.items():
            kind = self.number(0, 7)
            if kind:
                row[name] = self.value() if kind == 1 else self.text() if kind == 2 and isinstance(good, str) else good
        return row

    def lines(self, fields: Mapping[str, Any], most: int = 4) -> bytes:
        rows = [self.row(fields) for _ in range(self.number(1, most))]
        return b"".join(
            json.dumps(row, ensure_ascii=self.number(0, 1) == 0).encode("utf-8", "replace") + b"\n" for row in rows
        )


TURNS = [{"role": "user", "content": "Story:\nOnce.\n\nWho?"}, {"role": "assistant", "content": "She."}]
SOURCE_FIELDS = {
    "doc_id": "d",
    "context": "Some text.",
    "title": "T",
    "question": "Who?",
    "answers": ["A"],
    "id": "q",
    "kind": "other",
    "evidence": [[0, 4]],
    "questions": [{"question": "Who?", "answers": ["A"], "id": 3}],
    "conversations": TURNS,
    "messages": TURNS,
    "instruction": "Below is a paper. Memorize it, my question after the paper. T Now the paper ends. Q",
    "input": "I",
    "output": "O",
    "file": "F",
}
SHAPE_FIELDS: dict[str, Any] = {
    "document": {"text": "Some text."},
    "contexts": ["One.", {"title": "T", "text": "Two."}],
    "paragraphs": [{"context": "Some text.", "qas": [{"question": "Who?", "answers": {"text": ["A"]}}]}],
    "data": [{"title": "T", "paragraphs": [{"context": "Some text.", "qas": []}]}],
    "query": {"text": "Who?"},
    "questions": ["Who?"],
    "answers": {"input_text": ["A"]},
    "answer": 1,
    "options": ["A", "B"],
    "gold_label": 2,
    "system": "S",
    "prompt": [{"role": "user", "content": [{"type": "text", "text": "Context: T\nQuestion: Who?"}]}],
    "completion": [{"role": "assistant", "content": "A"}],
}
PREDICTION_FIELDS = {
    "pred": "the mill",
    "answers": ["Paragraph 3", "段落3", "Abbreviation"],
    "all_classes": ["Abbreviation", "Entity"],
    "length": 5000,
    "_id": "i",
    "task": "qasper",
    "dataset": "hotpotqa_e",
    "truncated": False,
    "response": "r",
}
LONGBENCH_FIELDS = {"input": "Q", "context": "T", **PREDICTION_FIELDS}


def source_bytes(data: bytes, folder: Path) -> None:
    """Any bytes as JSON lines or a JSON list."""
    _read_source(folder / "docs.jsonl", data)


def source_rows(data: bytes, folder: Path) -> None:
    """JSON rows of any shape: documents, questions, conversations, LongAlpaca."""
    draw = Draw(data)
    form = draw.choice(("auto", "jsonl", "conversations", "longalpaca"))
    lines = draw.lines(SOURCE_FIELDS)
    if not draw.number(0, 3):
        lines = b"[" + b",".join(lines.splitlines()) + b"]"
    questions = draw.lines({**SOURCE_FIELDS, "doc_id": "d"}) if not draw.number(0, 2) else None
    settings: dict[str, Any] = {"format": form}
    if questions is not None:
        (folder / "qa.jsonl").write_bytes(questions)
        settings["questions"] = str(folder / "qa.jsonl")
    if not draw.number(0, 3):
        settings["columns"] = {draw.choice(("context", "answers", "id")): draw.choice(("title", "file", "body"))}
    _read_source(folder / "docs.jsonl", lines, **settings)


def source_shapes(data: bytes, folder: Path) -> None:
    """JSON rows with fields of any data set."""
    draw = Draw(data)
    kept = [name for name in SHAPE_FIELDS if draw.number(0, 2) == 0]
    _read_source(folder / "docs.jsonl", draw.lines({name: SHAPE_FIELDS[name] for name in kept}))


def source_table(data: bytes, folder: Path) -> None:
    """A table of any cells, quoted or not; or any bytes, under a header or without one."""
    draw = Draw(data)
    delimiter = draw.choice((",", ";", "\t", "|"))
    header = draw.choice(("context,question,answers\n", ",Text,Question,Answer\r\n", "sep=;\ncontext;question\n", ""))
    if draw.number(0, 1):
        _read_source(folder / "docs.csv", header.replace(",", delimiter).encode() + data)
        return
    rows = [[draw.choice((draw.text(), "['a', 'b']", '["a"]', "T", "")) for _ in range(3)] for _ in range(3)]
    quoted = draw.number(0, 3) > 0
    cells = [[f'"{cell.replace(chr(34), 2 * chr(34))}"' if quoted else cell for cell in row] for row in rows]
    text = header.replace(",", delimiter) + "".join(delimiter.join(row) + "\n" for row in cells)
    _read_source(folder / "docs.csv", text.encode("utf-8", "replace"))


def source_text(data: bytes, folder: Path) -> None:
    """Any bytes as a text file."""
    _read_source(folder / "docs.txt", data)


def source_document(data: bytes, folder: Path) -> None:
    """A PDF file, page, Word document or book with bytes of it changed or cut off; or any bytes as one."""
    draw = Draw(data)
    suffix = draw.choice((".pdf", ".html", ".docx", ".epub"))
    whole = bytearray(_documents()[suffix])
    for _ in range(draw.number(0, 12)):
        whole[(draw.byte() * 256 + draw.byte()) % len(whole)] = draw.byte()
    cut = draw.number(0, 3)
    _read_source(
        folder / f"docs{suffix}", data if cut == 0 else bytes(whole[: -draw.byte() - 1] if cut == 1 else whole)
    )


def source_packed(data: bytes, folder: Path) -> None:
    """Compressed JSON lines with bytes changed or cut off."""
    draw = Draw(data)
    whole = bytearray(gzip.compress(draw.lines({"context": "T", "question": "Q", "answers": ["A"]}), mtime=0))
    for _ in range(draw.number(0, 3)):
        whole[draw.byte() % len(whole)] = draw.byte()
    _read_source(folder / "docs.jsonl.gz", bytes(whole[: -draw.byte() - 1] if draw.number(0, 1) else whole))


def source_parquet(data: bytes, folder: Path) -> None:
    """A good parquet file with some bytes of it changed, or cut off."""
    draw, whole = Draw(data), bytearray(_parquet())
    for _ in range(draw.number(0, 8)):
        whole[draw.number(0, len(whole) - 1)] = draw.byte()
    end = len(whole) if draw.number(0, 3) else draw.number(0, len(whole))
    _read_source(folder / "docs.parquet", bytes(whole[:end]))


def _read_source(path: Path, content: bytes, **settings: Any) -> None:
    path.write_bytes(content)
    found = read_source(SourceSettings(path=str(path), **settings), needs_questions=False)
    for document in found.documents:
        document.text.encode("utf-8")
        assert all(question.question for question in document.questions)
    json.dumps([row.to_json() for row in found.rejected], ensure_ascii=False).encode("utf-8")


@cache
def _documents() -> dict[str, bytes]:
    page = "<nav>x</nav><h1>T</h1><p>One &amp; two.<img alt='a'></p><table><tr><td>a</td><td>b</td></tr></table>"
    return {
        ".pdf": make_pdf(["One.\nTwo.", None]),
        ".html": f"<!DOCTYPE html><meta charset=utf-8><script>x</script>{page}".encode(),
        ".docx": make_docx(["One.", "Two."], table=[["a", "b"]], header="H"),
        ".epub": make_epub({"a": page, "b": page}),
    }


@cache
def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"context": f"Text {number}.", "question": "Q", "answers": ["A"], "evidence": [[0, 1]]} for number in range(3)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    made: bytes = sink.getvalue().to_pybytes()
    return made


def prediction_bytes(data: bytes, folder: Path) -> None:
    """Any bytes as a prediction file."""
    _score(folder / "qasper.jsonl", data, e=False)


def prediction_rows(data: bytes, folder: Path) -> None:
    """Rows of any shape as the predictions of any task, scored."""
    draw = Draw(data)
    name = draw.choice((*TASKS, "anything")) + draw.choice(("", "_e"))
    _score(folder / f"{name}.jsonl", draw.lines(PREDICTION_FIELDS), e=draw.number(0, 1) == 1)


def _score(path: Path, content: bytes, *, e: bool) -> None:
    path.write_bytes(content)
    outcome, is_e = score_predictions(path, e=e, code_sim="rapidfuzz")
    json.dumps(
        record(outcome, "LongBench-E" if is_e else "LongBench", "rapidfuzz").to_json(), ensure_ascii=False
    ).encode("utf-8")
    assert all(0 <= score <= 1 for sample in outcome.samples for score in sample.scores.values())


def longbench_rows(data: bytes, folder: Path) -> None:
    """Rows of any shape as LongBench's, by themselves or in an archive that may be damaged."""
    import io
    import zipfile

    draw = Draw(data)
    name = draw.choice((*TASKS, "anything"))
    lines = draw.lines(LONGBENCH_FIELDS)
    path = folder / f"{name}.jsonl"
    if draw.number(0, 1):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"data/{name}.jsonl", lines)
        whole = bytearray(made.getvalue())
        for _ in range(draw.number(0, 4)):
            whole[draw.number(0, len(whole) - 1)] = draw.byte()
        path, lines = folder / "data.zip", bytes(whole)
    path.write_bytes(lines)
    _read_longbench(path, e=draw.number(0, 1) == 1)


def longbench_bytes(data: bytes, folder: Path) -> None:
    """Any bytes as LongBench's rows or archive."""
    path = folder / ("data.zip" if data.startswith(b"PK") else "qasper.jsonl")
    path.write_bytes(data)
    _read_longbench(path, e=False)


def _read_longbench(path: Path, *, e: bool) -> None:
    for rows in read_rows.__wrapped__(path, None, e).values():
        for row in rows:
            (row.context + row.input + "".join(row.answers)).encode("utf-8")


RECIPES = {"build": BuildRecipe, "train": TrainRecipe, "eval": EvalRecipe}
KEYS = ("model", "seed", "source", "path", "engine", "kind", "base_urls", "judge", "objective", "name", "rope", "niah")
KEYS += ("optimizer", "lr", "contexts", "mixed_ratios", "lengths", "data", "chat_template", "api_key_env", "evaluator")
VALUES = (
    "null",
    "{}",
    "[]",
    "1",
    "-1",
    "1e400",
    ".nan",
    "x",
    "!!int x",
    "*a",
    "&a [*a]",
    "{name: simpo}",
    "openai",
    "[a]",
)
VALUES += (
    "2024-13-45",
    "{1: 2}",
    "embedded",
    "org/name",
    "'",
    "{a: {b: {c: 1}}}",
    "yes",
    "1_000",
    "0x1f",
    "\\ud83d",
    "K",
)


def recipe_bytes(data: bytes, folder: Path) -> None:
    """Any bytes as a recipe, read by each of the programs."""
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    for section, cls in RECIPES.items():
        _try(lambda section=section, cls=cls: load_recipe(cls, section, path))  # type: ignore[misc]


def recipe_overrides(data: bytes, folder: Path) -> None:
    """A recipe of known keys and odd values, under overrides of the same."""
    draw, path = Draw(data), folder / "recipe.yaml"
    section, cls = draw.choice(tuple(RECIPES.items()))

    def dotted() -> str:
        key = ".".join(draw.choice(KEYS) for _ in range(draw.number(1, 3)))
        return f"{key}={draw.choice(VALUES) if draw.number(0, 2) else draw.text()}"

    inner = ", ".join(f"{draw.choice(KEYS)}: {draw.choice(VALUES)}" for _ in range(draw.number(0, 3)))
    text = f"model: {draw.choice(VALUES)}\n{section}: {{{inner}}}\n"
    path.write_bytes(text.encode("utf-8", "replace"))
    load_recipe(cls, section, path, [dotted() for _ in range(draw.number(0, 3))])  # type: ignore[type-var, arg-type]


def judge_replies(data: bytes, folder: Path) -> None:
    """What a model judge may reply, and what a model may write for a question."""
    draw = Draw(data)
    reply = "".join(draw.text() for _ in range(draw.number(0, 6)))
    for text in (reply, data.decode("utf-8", "replace")):
        assert parse_verdict(text, ended=False) == "malformed"
        if parse_verdict(text, ended=True) != "malformed":
            assert text.rstrip().rstrip(".").lower().endswith(("correct", "wrong"))
        written = parse_reply(text)
        if written is not None:
            assert all(part and "\n" not in part for part in written)
        named = parse_cluster_reply(text, 3)
        if named is not None and named != "skipped":
            assert all(part and "\n" not in part for part in named[:2])
            assert len(named[2]) > 1
            assert set(named[2]) <= {0, 1, 2}
        for name, places in recurring_names([text, reply, text]):
            assert name
            assert len(places) > 1


def server_answers(data: bytes, folder: Path) -> None:
    """What a server may answer, as JSON of any shape or as any bytes."""
    draw, reader = Draw(data), Reader("sk-canary")
    request = GenerationRequest("r", (1, 2), Sampling(max_new_tokens=4, stop_ids=(2,)))
    choice = {"token_ids": [4, 2], "finish_reason": "stop", "text": "x"}
    answer = draw.row(
        {"choices": [draw.row(choice)], "data": [draw.row({"id": "m", "max_model_len": 5, "owned_by": "vllm"})]}
    )
    body = json.dumps(answer).encode() if draw.number(0, 3) else data
    response = httpx.Response(
        draw.choice((200, 200, 200, 400, 408, 429, 500)),
        headers=[(b"retry-after", bytes(draw.byte() for _ in range(draw.number(0, 12))))],
        content=body,
    )
    try:
        told = reader.json(response, where="here", mend="mend")
        _try(lambda: reader.completion(told, request, "http://h"))
        found = reader.model_card(told, "m", "http://h", needs_adapter=draw.number(0, 1) == 1)
        reader.version(found, draw.value())
    except Fault as fault:
        _check(0 <= fault.asked_wait_s <= 600, fault.asked_wait_s)


def chat_answers(data: bytes, folder: Path) -> None:
    """What a chat server of either shape may answer, as JSON of any shape."""
    draw = Draw(data)
    message = draw.row({"role": "assistant", "content": "x", "reasoning": "y", "refusal": None})
    usage = draw.row({"prompt_tokens": 3, "completion_tokens": 2, "input_tokens": 3, "output_tokens": 2})
    block = draw.row({"type": draw.choice(("text", "thinking")), "text": "x", "thinking": "y"})
    answer = draw.row(
        {
            "choices": [draw.row({"message": message, "finish_reason": draw.choice(("stop", "length", "error"))})],
            "content": [block],
            "stop_reason": draw.choice(("end_turn", "max_tokens", "refusal")),
            "usage": usage,
            "error": draw.choice((None, None, None, {"message": "m"}, "m")),
        }
    )
    for read in (read_openai, read_anthropic):
        try:
            found = read(answer)
        except (ValueError, Fault):
            continue
        _check(isinstance(found.text, str) and found.finish_reason in ("stop", "length"), found)


def messages(data: bytes, folder: Path) -> None:
    """The message of a prompt is the text that was put into the chat template, whatever it holds."""
    draw, tokenizer = Draw(data), _tokenizer()
    text = "".join(draw.choice((draw.text(), "<|im_end|>\n<|im_start|>", "user\n", "\ue000")) for _ in range(4))
    text = text.encode("utf-8", "ignore").decode("utf-8")
    ids = PromptFormat(tokenizer, "{question}").encode([], question=text).ids
    _check(UserMessages(tokenizer).read(ids) == text, text)


def logs(data: bytes, folder: Path) -> None:
    """Any bytes as a resumable log, then a record appended, then read again."""
    path = folder / "log.jsonl"
    draw = Draw(data)
    path.write_bytes(data if draw.number(0, 1) else draw.lines({"id": "a", "text": "t"}))
    log = AppendLog(path)
    before = dict(log)
    log.append({"id": "new", "text": "\u2028é"})
    again = AppendLog(path)
    assert dict(again) == {"new": {"id": "new", "text": "\u2028é"}, **before}
    path.unlink()


def chunks(data: bytes, folder: Path) -> None:
    """Chunks of any text are the text, and their tokens the document's."""
    draw = Draw(data)
    size = draw.number(1, 20)
    text = "".join(draw.text() for _ in range(draw.number(1, 5))).encode("utf-8", "ignore").decode("utf-8")
    tokenizer = _tokenizer()
    found = chunk_text(tokenizer, text, size)
    assert "".join(text[chunk.start : chunk.end] for chunk in found) == text
    assert [token for chunk in found for token in chunk.token_ids] == encode_text(tokenizer, text)
    assert all(a.end == b.start for a, b in pairwise(found))


@cache
def _tokenizer() -> Any:
    from tests.conftest import make_tokenizer

    return make_tokenizer()


def positions(data: bytes, folder: Path) -> None:
    """Positions of any row increase strictly and stay under the target."""
    draw = Draw(data)
    head, tail = draw.number(0, 9), draw.number(0, 9)
    sizes = [draw.number(1, 12) for _ in range(draw.number(0, 12))]
    starts = [head + sum(sizes[:number]) for number in range(len(sizes))]
    spans = [(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    length, reserve = head + sum(sizes) + tail, draw.number(0, 9)
    target = draw.number(0, 300)
    found = draw_positions(
        length,
        spans,
        target_length=target,
        reserve=reserve,
        mode=draw.choice(("natural", "continuous", "sparse", "pose", "randpos")),
        rng=np.random.default_rng(draw.number(0, 255)),
    )
    assert found.shape == (length,)
    assert length == 0 or (found[0] >= 0 and found[-1] < target - reserve)
    assert (np.diff(found) > 0).all()


def contexts(data: bytes, folder: Path) -> None:
    """Contexts of any scores have N chunks in order, each critical one in the training context."""
    draw = Draw(data)
    n = draw.number(2, 8)
    # Bytes give only a seed of the scores: a byte for each leaves most examples none for the ratios.
    rng = np.random.default_rng(draw.byte())
    scores = rng.choice((0.0, 1.0, 6.0, 6.5, 7.0, -1.0, float("inf")), draw.number(0, 30))
    ratios = tuple({(100 - draw.number(1, 99)) / 100: None for _ in range(draw.number(0, 3))})  # two alike are refused
    rule: dict[str, Any] = {"critical_threshold": draw.choice((0.0, 6.0))}
    if draw.number(0, 1):
        rule = {"critical_threshold": None, "critical_top": draw.number(1, n)}
    settings = ContextSettings(num_chunks=n, mixed_ratios=ratios, **rule)
    found = draw_contexts(scores, settings, rng)
    if isinstance(found, str):
        return
    critical = set(found.critical)
    assert critical
    assert critical <= set(found.training)
    assert not critical & set(found.irrelevant)
    for context in (found.irrelevant, found.training, *found.mixed):
        assert len(context) == n
        assert list(context) == sorted(set(context))
    for mixed in found.mixed:
        assert 0 < len(critical & set(mixed)) <= len(critical)
        assert len(critical) == 1 or len(critical & set(mixed)) < len(critical)


def _try(run: Callable[[], object]) -> None:
    try:
        run()
    except UserError as error:
        _check(not any(letter in str(error) for letter in "\n\x1b"), error)


def _check(is_so: bool, found: object) -> None:
    if not is_so:
        raise AssertionError(found)


GROUPS: dict[str, tuple[Target, ...]] = {
    "sources": (
        source_bytes,
        source_rows,
        source_shapes,
        source_table,
        source_text,
        source_document,
        source_packed,
        source_parquet,
    ),
    "predictions": (prediction_bytes, prediction_rows, longbench_bytes, longbench_rows),
    "recipes": (recipe_bytes, recipe_overrides),
    "judge": (judge_replies,),
    "method": (chunks, positions, contexts),
    "servers and logs": (server_answers, chat_answers, messages, logs),
}
TARGETS = {target.__name__: target for members in GROUPS.values() for target in members}


def run_target(name: str, data: bytes, folder: Path) -> None:
    """One execution. Raises what is a finding."""
    _try(lambda: TARGETS[name](data, folder))
