"""Shards of a build, merged, are the unsharded build, byte for byte."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import logodata.build.responses
from logodata.build.shards import BuildShard
from logodata.cli import main
from logodata.common.errors import UserError
from logodata.dataset.samples import read_samples, write_samples
from logodata.engines import GenerationRequest, GenerationResult
from logodata.models.loading import load_tokenizer

FILES = ("data/train-00000-of-00001.parquet", "stats.json", "rejected.jsonl", "README.md", "manifest.json")
NUM_DOCUMENTS = 9


class Engine:
    """Right from critical chunks, but for question 2 of each document; wrong from others."""

    name = "scripted 1"

    def __init__(self, model_dir: Path) -> None:
        self._tokenizer = load_tokenizer(str(model_dir))

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[GenerationResult]:
        for request in requests:
            question_id, _, strategy = request.id.rpartition("/")
            right = strategy == "model-0" and not question_id.endswith("-02")
            text = f"It holds {question_id[:-3]}lanterns." if right else f"\u2028It holds {strategy} sand."
            yield GenerationResult(request.id, tuple(self._tokenizer.encode(text, add_special_tokens=False)), "stop")


@pytest.fixture(autouse=True)
def scripted(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logodata.build.responses, "open_engine", lambda *_: Engine(tiny_model_dir))


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Nine documents of two questions, one too short, and one empty one."""
    rows = []
    for number in range(NUM_DOCUMENTS):
        name = f"mill{number}"
        weather = [f"On day {day} nothing was written down but wind of kind {day * 7}. " for day in range(20)]
        weather.insert(9, f"The loft of {name} holds {name}lanterns. ")
        text = "Too short." if number == 4 else "".join(weather)
        questions = [{"question": f"What does the {where} of {name} hold?", "answers": [f"{name}lanterns"]} for where in
                     ("loft", "tower")]  # fmt: skip
        rows.append({"doc_id": name, "context": text, "questions": questions})
    rows.append({"doc_id": "empty", "context": " ", "question": "What?", "answers": ["x"]})
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run_build(documents: Path, model: Path, output: Path, *arguments: str) -> int:
    small = ["chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_threshold=null"]
    small += ["contexts.critical_top=2", "generation.max_new_tokens=8"]
    return main(["build", str(documents), *small, "--model", str(model), "-o", str(output), *arguments])


@pytest.mark.parametrize("joined", [(), ("source.join_tokens=1500",), ("--deal-in-turn",)])
def test_merged_shards_are_the_unsharded_build(
    tmp_path: Path, tiny_model_dir: Path, documents: Path, joined: tuple[str, ...]
) -> None:
    whole, merged = tmp_path / "whole", tmp_path / "merged"
    assert run_build(documents, tiny_model_dir, whole, *(word for word in joined if "=" in word)) == 0
    shards = [tmp_path / f"shard-{number}" for number in (3, 1, 2)]
    for shard in shards:
        assert run_build(documents, tiny_model_dir, shard, "--shard", f"{shard.name[-1]}/3", *joined) == 0
    assert main(["merge", *map(str, shards), "-o", str(merged)]) == 0
    for name in FILES:
        assert (whole / name).read_bytes() == (merged / name).read_bytes(), name
    kept = [len(read_samples(shard)) for shard in shards]
    assert sum(kept) == len(read_samples(whole)) >= 8
    assert sum(count > 0 for count in kept) >= 2, "the documents are spread"
    reasons = json.loads((whole / "stats.json").read_text())["rejected_by_reason"]
    assert reasons["preferred_wrong"] >= 8
    assert reasons["empty_document"] == 1


def test_a_sample_in_two_shards_is_refused(
    tmp_path: Path, tiny_model_dir: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody copied rows: one of the two would be lost."""
    first, second = tmp_path / "shard-1", tmp_path / "shard-2"
    for number, shard in enumerate((first, second), 1):
        assert run_build(documents, tiny_model_dir, shard, "--shard", f"{number}/2") == 0
    places = [json.loads((shard / "shard.json").read_text()) for shard in (first, second)]
    places[1]["places"] |= places[0]["places"]
    (second / "shard.json").write_text(json.dumps(places[1]))
    samples = [*read_samples(first)[:1], *read_samples(second)]
    write_samples(next((second / "data").glob("*.parquet")), samples)
    assert main(["merge", str(first), str(second), "-o", str(tmp_path / "merged")]) == 2
    assert f"question '{samples[0].id}' is in two shards" in " ".join(capsys.readouterr().err.split())


def test_a_question_without_an_outcome_is_refused(
    tmp_path: Path, tiny_model_dir: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody deleted the reason why a question gave no sample; its decisions are still there."""
    shards = [tmp_path / f"shard-{number}" for number in (1, 2)]
    for number, shard in enumerate(shards, 1):
        assert run_build(documents, tiny_model_dir, shard, "--shard", f"{number}/2") == 0
    (shards[1] / "rejected.jsonl").write_text("")
    assert main(["merge", *map(str, shards), "-o", str(tmp_path / "merged")]) == 2
    assert "damaged: neither a sample nor a reason why there is none (build the shards" in capsys.readouterr().err


def test_documents_are_dealt_by_their_id() -> None:
    shards = [BuildShard(number, 4) for number in (1, 2, 3, 4)]
    owners = {f"doc-{n}": [shard.number for shard in shards if shard.owns(f"doc-{n}")] for n in range(400)}
    assert all(len(numbers) == 1 for numbers in owners.values())
    counts = [sum(numbers == [shard.number] for numbers in owners.values()) for shard in shards]
    assert min(counts) > 70
    assert owners["doc-7"] == [int(hashlib.sha256(b"doc-7").hexdigest()[:16], 16) % 4 + 1]


@pytest.mark.parametrize("joined", [(), ("source.join_tokens=1500",)])
def test_contexts_dealt_in_turn_are_even(
    tmp_path: Path, tiny_model_dir: Path, documents: Path, joined: tuple[str, ...]
) -> None:
    """Also joined ones; and shards 1 and 2 built as one have what both have."""
    places, questions = [], []
    for number in ("1", "2", "3", "1-2"):
        folder = tmp_path / number
        assert run_build(documents, tiny_model_dir, folder, "--shard", f"{number}/3", "--deal-in-turn", *joined) == 0
        record = json.loads((folder / "shard.json").read_text())
        assert record["in_turn"] is True
        places.append(set(record["places"]))
        questions.append([name for name in record["places"] if not name.startswith("empty")])
    assert places[3] == places[0] | places[1]
    assert not places[0] & places[1]
    # The documents in their order, those of a context together: two questions each.
    contexts = {folder: {name.rpartition("-")[0] for name in found} for folder, found in enumerate(questions[:3])}
    if not joined:
        assert [sorted(contexts[folder]) for folder in range(3)] == [
            [f"mill{at}" for at in range(first, NUM_DOCUMENTS, 3)] for first in range(3)
        ]
    else:
        assert all(contexts.values()), "no shard is empty"
    samples = [read_samples(tmp_path / number) for number in ("1", "2", "1-2")]
    by_id = {sample.id: sample for sample in (*samples[0], *samples[1])}
    assert {sample.id: sample for sample in samples[2]} == by_id
    assert len(by_id) >= 4
    merged = tmp_path / "merged"
    assert main(["merge", str(tmp_path / "1-2"), str(tmp_path / "3"), "-o", str(merged)]) == 0
    assert run_build(documents, tiny_model_dir, tmp_path / "whole", *joined) == 0
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (merged / name).read_bytes(), name


def test_a_shard_without_a_pair_is_a_shard(tmp_path: Path, tiny_model_dir: Path, documents: Path) -> None:
    """More shards than documents: some hold nothing."""
    total = 12
    shards = [tmp_path / f"shard-{number}" for number in range(1, total + 1)]
    for number, shard in enumerate(shards, 1):
        assert run_build(documents, tiny_model_dir, shard, "--shard", f"{number}/{total}") == 0
    assert min(len(read_samples(shard)) for shard in shards) == 0
    assert run_build(documents, tiny_model_dir, tmp_path / "whole") == 0
    assert main(["merge", *map(str, shards), "-o", str(tmp_path / "merged")]) == 0
    for name in FILES:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes(), name


def test_what_cannot_be_merged(
    tmp_path: Path, tiny_model_dir: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shard(name: str, *arguments: str) -> Path:
        assert run_build(documents, tiny_model_dir, tmp_path / name, *arguments) == 0
        return tmp_path / name

    def fault(*folders: Path, output: str = "merged") -> str:
        capsys.readouterr()
        assert main(["merge", *map(str, folders), "-o", str(tmp_path / output)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not (tmp_path / "merged").exists()
        return error

    first, second = shard("one", "--shard", "1/2"), shard("two", "--shard", "2/2")
    again, whole = shard("again", "--shard", "2/2"), shard("whole")
    turned, both = shard("turned", "--shard", "2/2", "--deal-in-turn"), shard("both", "--shard", "1-2/2")
    assert "shard 2/2 in turn beside 1/2" in fault(first, turned)
    assert "is in" in fault(both, second)
    third, reseeded = shard("third", "--shard", "1/3"), shard("reseeded", "--shard", "2/2", "seed=5")
    assert "missing of 2 shards: 1 (" in fault(second)
    assert "shard 2/2 is in" in fault(first, second, again)
    assert "shard 1/3 beside 1/2" in fault(first, third)
    assert "recipe.seed=5, but 0 in" in fault(first, reseeded)
    assert "a whole data set, not a shard" in fault(first, whole)
    assert "no such folder" in fault(first, tmp_path / "nowhere")
    assert "one: lies inside a shard" in fault(first, second, output="one")
    assert "whole: holds a build already" in fault(first, second, output="whole")
    (second / "manifest.json").unlink()
    assert "holds no finished shard" in fault(first, second)


def test_a_folder_keeps_its_part(
    tmp_path: Path, tiny_model_dir: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_build(documents, tiny_model_dir, tmp_path / "one", "--shard", "1/2") == 0
    assert run_build(documents, tiny_model_dir, tmp_path / "one", "--shard", "2/2") == 2
    assert "shard='1/2', now it is '2/2'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", "2-1/3", "1-4/3", "1-/3"])
def test_bad_shards(text: str) -> None:
    with pytest.raises(UserError, match="i from 1 to n"):
        BuildShard.parse(text)


def test_nothing_is_dealt_without_shards(
    tmp_path: Path, tiny_model_dir: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_build(documents, tiny_model_dir, tmp_path / "one", "--deal-in-turn") == 2
    assert "--deal-in-turn deals documents to shards" in capsys.readouterr().err
