"""Long contexts: what is held at once is bounded by tokens, and work grows no faster than the document."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import logodata.build.pipeline
import logodata.build.responses
import logodata.dataset.samples
from logodata.build.pipeline import Pipeline
from logodata.build.preparing import Prepared, PreparedQuestion, QuestionPreparer, tokens_held
from logodata.build.ray_driver import group_size
from logodata.common.groups import in_groups
from logodata.common.recipes.reading import load_recipe
from logodata.common.records import arrow_schema
from logodata.contexts.scores import open_evaluator
from logodata.contract import Document, PreferenceSample, Question, QuestionOutcome
from logodata.dataset.samples import write_samples
from logodata.models.loading import load_tokenizer
from logodata.recipe.settings import BuildRecipe
from tests.logodata.build.test_build import ScriptedEngine, filler, run_build, write_documents
from tests.logotrain.conftest import sample_of

FILES = ("data/train-00000-of-00001.parquet", "rejected.jsonl", "decisions.jsonl", "stats.json", "README.md")


@given(st.lists(st.integers(0, 9)), st.integers(1, 5), st.integers(1, 20))
def test_groups_end_with_the_item_that_reaches_a_limit(sizes: list[int], most: int, total: int) -> None:
    groups = list(in_groups(sizes, (lambda _: 1, most), (lambda size: size, total)))
    assert [size for group in groups for size in group] == sizes
    for group in groups:
        assert len(group) <= most
        assert sum(group[:-1]) < total
    for group in groups[:-1]:
        assert len(group) == most or sum(group) >= total


def test_a_build_answers_few_long_questions_together_and_is_the_same(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logodata.build.responses, "open_engine", lambda *_: ScriptedEngine(tiny_model_dir))
    documents = write_documents(tmp_path)
    groups: list[list[int]] = []
    answer = Pipeline.answer

    def answered(pipeline: Pipeline, questions: Sequence[Prepared], tracker: Any) -> list[QuestionOutcome]:
        groups.append([tokens_held(question) for question in questions])
        return answer(pipeline, questions, tracker)

    monkeypatch.setattr(Pipeline, "answer", answered)
    assert run_build(documents, tiny_model_dir, tmp_path / "together") == 0
    [(first, second, third)] = groups
    monkeypatch.setattr(logodata.build.pipeline, "GROUP_TOKENS", first + 1)
    assert run_build(documents, tiny_model_dir, tmp_path / "apart") == 0
    assert groups[1:] == [[first, second], [third]]
    for name in FILES:
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "apart" / name).read_bytes(), name


def test_the_tokens_of_a_question_are_those_of_its_pool_and_prompts(tiny_model_dir: Path) -> None:
    preparer, document = make_preparer(tiny_model_dir, 4), make_document(40)
    [pool] = preparer.pools([document])
    whole = len(load_tokenizer(str(tiny_model_dir))(document.text)["input_ids"])
    assert pool.num_tokens == whole
    [prepared] = preparer.prepare_pool(pool, open_evaluator(preparer._recipe.evaluator))
    assert isinstance(prepared, PreparedQuestion)
    requests = (*prepared.preferred, *prepared.rejected.values())
    assert len(requests) == 3
    assert tokens_held(prepared) == whole + len(prepared.prompt.ids) + sum(len(it.prompt_ids) for it in requests)


def make_preparer(model: Path, num_chunks: int) -> QuestionPreparer:
    settings = [
        f"model={model}",
        "source.path=my.jsonl",
        "chunking.chunk_tokens=16",
        f"contexts.num_chunks={num_chunks}",
    ]
    settings += ["contexts.critical_threshold=null", f"contexts.critical_top={num_chunks}"]
    recipe = load_recipe(BuildRecipe, "build", None, settings)
    return QuestionPreparer(recipe, load_tokenizer(str(model)), 10**6)


def make_document(length: int) -> Document:
    # Half of the text shares a word with the question, so that half of a long context is critical.
    text = (filler(10) + "The mill stood still that day, and nobody said why it did so. ") * (length // 2)
    return Document(doc_id="d", text=text, questions=[Question(id="q", question="Which mill?", answers=["it"])])


def lines_run(work: Callable[[], object]) -> int:
    """The lines of logodata that run during ``work``, but for those that read words, which are read once each."""
    count = 0

    def local(_frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def enter(frame: FrameType, _event: str, _: object) -> Any:
        file = frame.f_code.co_filename
        return local if "/logodata/" in file and "/common/words/" not in file else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_preparing_takes_steps_in_proportion_to_the_document(tiny_model_dir: Path) -> None:
    """Lines are counted, since time depends on luck, and comparisons of chunk numbers, which are no lines."""
    compared = 0

    class Number(int):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return int(self) == other

        __hash__ = int.__hash__

    def steps(length: int) -> tuple[int, int]:
        nonlocal compared
        preparer, document = make_preparer(tiny_model_dir, length // 4), make_document(length)
        evaluator = open_evaluator(preparer._recipe.evaluator)
        found: list[PreparedQuestion] = []

        def prepare() -> None:
            for pool in preparer.pools([document]):
                found.extend(one for one in preparer.prepare_pool(pool, evaluator) if isinstance(one, PreparedQuestion))

        lines = lines_run(prepare)
        [prepared] = found
        assert len(prepared.contexts.critical) > length // 8
        object.__setattr__(prepared.contexts, "critical", tuple(map(Number, prepared.contexts.critical)))
        compared = 0
        lines += lines_run(prepared.training_chunks)
        return lines, compared

    steps(40)  # what is looked up once
    (few, compared_few), (many, compared_many) = steps(60), steps(240)
    assert few > 1000
    assert many <= 4.2 * few
    assert compared_many <= 4.5 * max(compared_few, 60)


def test_pools_of_many_documents_are_joined_in_steps_linear_in_them(tiny_model_dir: Path) -> None:
    def steps(count: int) -> int:
        recipe = load_recipe(
            BuildRecipe, "build", None, [f"model={tiny_model_dir}", "source.path=m.jsonl", "source.join_tokens=1000000"]
        )
        preparer = QuestionPreparer(recipe, load_tokenizer(str(tiny_model_dir)), 10**6)
        documents = [Document(doc_id=str(n), text="a b", questions=[]) for n in range(count)]
        summed = 0

        class Counted(tuple[int, ...]):
            def __len__(self) -> int:
                nonlocal summed
                summed += 1
                return super().__len__()

        def cut(*arguments: Any) -> Any:
            return [
                type(chunk)(chunk.index, chunk.start, chunk.end, Counted(chunk.token_ids))
                for chunk in chunk_text(*arguments)
            ]

        chunk_text = logodata.build.preparing.chunk_text
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logodata.build.preparing, "chunk_text", cut)
            [pool] = preparer.pools(documents)
        assert [document.doc_id for document in pool.documents] == [str(n) for n in range(count)]
        return summed

    assert 0 < steps(40) <= 2 * steps(20)


def test_equal_tokens_of_a_document_are_one_object(tiny_model_dir: Path) -> None:
    [pool] = make_preparer(tiny_model_dir, 4).pools([make_document(40)])
    tokens = [token for _, chunk in pool.chunks for token in chunk.token_ids]
    assert len({id(token) for token in tokens}) == len(set(tokens)) < len(tokens)


def test_row_groups_are_bounded_by_tokens_and_have_the_bytes_of_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [sample_of(f"s{n}", chunks=2 + n % 3) for n in range(7)]
    path = tmp_path / "samples.parquet"
    assert write_samples(path, iter(samples)) == 7
    schema = arrow_schema(PreferenceSample)
    with pq.ParquetWriter(tmp_path / "plain.parquet", schema, compression="zstd") as writer:
        writer.write_table(pa.Table.from_pylist([sample.model_dump() for sample in samples], schema=schema))
    assert path.read_bytes() == (tmp_path / "plain.parquet").read_bytes()

    longest = max(len(sample.prompt_ids) for sample in samples)
    monkeypatch.setattr(logodata.dataset.samples, "_TOKENS_PER_GROUP", 2 * longest)
    write_samples(path, iter(samples))
    metadata = pq.ParquetFile(path).metadata
    lengths = iter([len(sample.prompt_ids) for sample in samples])
    for number in range(metadata.num_row_groups):
        *others, _ = [next(lengths) for _ in range(metadata.row_group(number).num_rows)]
        assert sum(others) < 2 * longest
    assert metadata.num_row_groups > 2
    assert metadata.num_rows == 7


def test_workers_get_fewer_questions_of_long_contexts() -> None:
    def size(*settings: str) -> int:
        return group_size(load_recipe(BuildRecipe, "build", None, ["model=m", "source.path=s", *settings]), 10**6, 1)

    assert size("contexts.num_chunks=4", "contexts.critical_top=4") == 256
    long = size("contexts.num_chunks=1000", "chunking.chunk_tokens=128")
    assert 1 <= long * 5 * 128_000 <= logodata.build.pipeline.GROUP_TOKENS < (long + 1) * 5 * 128_000
    assert size("contexts.num_chunks=100000", "chunking.chunk_tokens=128") == 1
