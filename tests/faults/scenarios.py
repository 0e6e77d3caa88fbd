"""Tiny commands to be broken off, and what must be equal afterwards.

The model is the tests' random Llama, inputs are a few documents, so a command works for a second or less.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logodata.common.verbosity import quiet_transformers
from tests.conftest import make_model, make_tokenizer
from tests.data_sets import TIMES

Records = Counter[str]
"""What a user must not lose or find twice, each under its name: samples, responses, predictions, steps, checkpoints."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A command, and how its folder is read.

    Args:
        name: of the row in tables.
        program: ``logodata``, ``logotrain`` or ``logoeval``.
        argv: without ``-o``.
        records: of a finished folder.
        contents: of a finished folder: what must be equal, by its place.
    """

    name: str
    program: str
    argv: tuple[str, ...]
    records: Callable[[Path], Records]
    contents: Callable[[Path], dict[str, Any]]

    def command(self, output: Path) -> list[str]:
        """Arguments of the program."""
        return [*self.argv, "-o", str(output)]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A folder beside that of an uninterrupted run."""

    inputs: int
    lost: list[str]
    doubled: list[str]
    differing: list[str]

    @property
    def equal(self) -> bool:
        """Whether they are the same."""
        return not (self.lost or self.doubled or self.differing)


def compare(scenario: Scenario, plain: Path, found: Path) -> Comparison:
    """What became of the records of ``plain`` in ``found``, and which contents differ. A damaged file or folder that a
    restart has put aside (``*.damaged``) is not counted."""
    expected, records = scenario.records(plain), scenario.records(found)
    contents = [scenario.contents(folder) | _names(folder) for folder in (plain, found)]
    places = sorted(contents[0].keys() | contents[1].keys())
    return Comparison(
        inputs=expected.total(),
        lost=sorted((expected - records).elements()),
        doubled=sorted((records - expected).elements()),
        differing=[place for place in places if contents[0].get(place) != contents[1].get(place)],
    )


def _names(folder: Path) -> dict[str, Any]:
    """Every path, so that a temporary file that stayed is a difference."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return {f"{path} exists": True for path in paths if not any(part.endswith(".damaged") for part in path.parts)}


def make_scenarios(folder: Path) -> dict[str, Scenario]:
    """Write model and inputs into ``folder``; the commands on them, by name."""
    quiet_transformers()
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    make_model(len(make_tokenizer()), num_hidden_layers=1).save_pretrained(model)
    make_tokenizer().save_pretrained(model)
    scenarios = [_build(folder, model), *_train(folder, model), *_evaluate(folder, model)]
    return {scenario.name: scenario for scenario in scenarios}


# -- data --------------------------------------------------------------------------------------------------------------

_FACTS = {"harbour": "seven lanterns", "tower": "a brass owl", "mill": "green millet", "well": "an iron bell"}


def _filler(number: int) -> str:
    return f"On day {number} nothing was written down but wind and weather of kind {number * 7}. "


def _document(place: str, thing: str, days: int) -> dict[str, Any]:
    middle = days // 2
    before, after = ("".join(_filler(day) for day in part) for part in (range(middle), range(middle, days)))
    question = {"question": f"What does the {place} of Vell hold?", "answers": [thing], "kind": "single_detail"}
    return {"doc_id": place, "context": f"{before}The {place} of Vell holds {thing}. {after}", "questions": [question]}


def _build(folder: Path, model: Path) -> Scenario:
    """Three samples and a rejected question in two groups; the preferred response is the reference."""
    rows = [_document(place, thing, 24) for place, thing in _FACTS.items()]
    rows[2]["context"] = rows[2]["context"][:300]  # too short for its chunks
    source = _write_rows(folder / "documents.jsonl", rows)
    settings = [
        "chunking.chunk_tokens=48",
        "contexts.num_chunks=4",
        "contexts.critical_threshold=null",
        "contexts.critical_top=2",
        "evaluator.name=lexical",
        "generation.preferred=reference",
        "generation.max_new_tokens=4",
        "generation.group_size=2",
    ]
    return Scenario("build", "logodata", ("build", str(source), *settings, "--model", str(model)), _built, _data_set)


def _built(folder: Path) -> Records:
    import pyarrow.parquet as pq

    samples = (i for file in (folder / "data").glob("*.parquet") for i in pq.read_table(file)["id"].to_pylist())
    return Counter(
        [
            *(f"sample {i}" for i in samples),
            *(f"rejected {row['id']}" for row in _rows(folder / "rejected.jsonl")),
            *(f"decision {json.dumps(row, sort_keys=True)}" for row in _rows(folder / "decisions.jsonl")),
            *(f"outcome {row['id']}" for row in _rows(folder / "work" / "outcomes.jsonl")),
            *(f"response {row['key']}" for row in _rows(folder / "work" / "responses.jsonl")),
        ]
    )


def _data_set(folder: Path) -> dict[str, Any]:
    """Hashes of what a user takes, and the responses; order in ``work`` is free."""
    taken = (path for path in folder.rglob("*") if path.is_file())
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in taken
        if path.relative_to(folder).parts[0] not in ("work", ".lock") and path.suffix != ".damaged"
    }
    responses = sorted(_rows(folder / "work" / "responses.jsonl"), key=lambda row: str(row["key"]))
    return {**found, "work/responses.jsonl": responses}


# -- training ----------------------------------------------------------------------------------------------------------

_TRAIN = (
    "objective.beta=2.5",
    "lora.rank=2",
    "lora.target_modules=[q_proj]",
    "lora.train_embeddings=false",
    "optimizer.lr=2e-3",
    "samples_per_step=2",
    "max_steps=3",
    "recompute=none",
    "dtype=float32",
    "checkpoint.every_steps=1",
    "checkpoint.keep=2",
    "collapse.max_new_tokens=6",
    "collapse.num_prompts=1",
    "collapse.every_steps=2",
)


def _train(folder: Path, model: Path) -> Iterator[Scenario]:
    """Steps with a checkpoint each, written at once or in the background; all weights; a reference model."""
    from logodata.dataset.samples import write_samples
    from logodata.models.facts import model_fingerprint, tokenizer_fingerprint
    from tests.data_sets import write_manifest
    from tests.logotrain.conftest import sample_of

    data = folder / "data"
    (data / "data").mkdir(parents=True)
    write_samples(data / "data" / "samples.parquet", (sample_of(f"s{number}") for number in range(4)))
    write_manifest(
        data,
        model=str(model),
        model_fingerprint=model_fingerprint(str(model)),
        tokenizer_fingerprint=tokenizer_fingerprint(make_tokenizer()),
    )
    variants = {
        "train": ("checkpoint.asynchronous=false",),
        "train in background": ("checkpoint.asynchronous=true", "max_steps=2", "checkpoint.keep=1"),
        "train all weights": ("checkpoint.asynchronous=false", "tuning=full", "max_steps=1"),
        "train dpo": ("checkpoint.asynchronous=false", "objective={name: dpo}", "max_steps=1"),
    }
    for name, changes in variants.items():
        argv = ("run", "--model", str(model), "--data", str(data), *_TRAIN, *changes)
        yield Scenario(name, "logotrain", argv, _trained, _weights)


def _trained(folder: Path) -> Records:
    checkpoints = (path for path in (folder / "checkpoints").glob("step-*") if not path.name.endswith(".damaged"))
    return Counter(
        [
            *(f"step {row['step']}" for row in _rows(folder / "metrics.jsonl")),
            *(f"reference {row['id']}" for row in _rows(folder / "reference.jsonl")),
            *(f"checkpoint {path.name}" for path in checkpoints),
            *(f"final {path.name}" for path in (folder / "final").glob("*")),
        ]
    )


def _weights(folder: Path) -> dict[str, Any]:
    """Metrics but for their seconds; bytes of the result and of the checkpoints' adapters; settings."""
    settings = [folder / name for name in ("recipe.resolved.json", "inputs.json", "base.json")]
    adapters = (path for path in (folder / "checkpoints").glob("step-*/adapter/*") if ".damaged" not in str(path))
    files = [*settings, *(folder / "final").glob("*"), *adapters]
    found: dict[str, Any] = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.exists()
    }
    for row in _rows(folder / "metrics.jsonl"):
        found[f"metrics of step {row['step']}"] = {key: value for key, value in row.items() if key not in TIMES}
    return found


# -- evaluation --------------------------------------------------------------------------------------------------------


def _evaluate(folder: Path, model: Path) -> Iterator[Scenario]:
    story = "Once the miller of story {} stood in the mill by the bridge. " * 3
    answers = {"trec": "Date", "passage_count": "4", "hotpotqa": "in the mill"}
    rows = [
        {
            "_id": f"{task}-{number}",
            "dataset": task,
            "input": f"Where was it in story {number}?",
            "context": story.format(number, number, number),
            "answers": [answer],
            "length": 3000 * (number + 1),
            "all_classes": ["Date", "Place"] if task == "trec" else None,
            "language": "en",
        }
        for task, answer in answers.items()
        for number in range(2)
    ]
    data = _write_rows(folder / "longbench.jsonl", rows)
    books = folder / "books"
    books.mkdir()
    for number in range(3):
        (books / f"{number}.txt").write_text("".join(_filler(number * 50 + day) for day in range(6)), encoding="utf-8")
    niah = (
        "niah.variant=single",
        "niah.lengths=[700]",
        "niah.depths=[0,88]",
        "niah.num_samples=1",
        "niah.haystacks=noise",
        "niah.max_new_tokens=4",
    )
    common = ("--model", str(model))
    yield Scenario("longbench", "logoeval", ("longbench", *common, "--data", str(data)), _predicted, _results)
    yield Scenario("niah", "logoeval", ("niah", *common, *niah), _predicted, _results)
    retrieval = ("--retrieval", "niah.retrieval.num_calibration=1")
    yield Scenario("niah retrieval", "logoeval", ("niah", *common, *niah, *retrieval), _predicted, _results)
    ppl = ("ppl", *common, f"ppl.text={books}", "ppl.lengths=[32,64]", "ppl.num_documents=3")
    yield Scenario("ppl", "logoeval", ppl, _predicted, _results)


def _predicted(folder: Path) -> Records:
    predictions = sorted((folder / "predictions").rglob("*.jsonl"))
    tasks = json.loads((folder / "results.json").read_text(encoding="utf-8"))["tasks"]
    return Counter(
        [
            *(f"prediction {path.stem} {row['id']}" for path in predictions for row in _rows(path)),
            *(f"result {name} {row['id']}" for name, task in tasks.items() for row in task["samples"]),
        ]
    )


def _results(folder: Path) -> dict[str, Any]:
    """Results but for their date and seconds; predictions by id, in any order; settings and heads."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for task in results["tasks"].values():
        task["provenance"] |= {"date": "", "seconds": 0}
    found = {"results.json": results}
    for path in (*folder.glob("heads.json"), *(folder / "predictions").rglob("*.json")):
        found[str(path.relative_to(folder))] = json.loads(path.read_text(encoding="utf-8"))
    for path in (folder / "predictions").rglob("*.jsonl"):
        found[str(path.relative_to(folder))] = sorted(_rows(path), key=lambda row: str(row["id"]))
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
