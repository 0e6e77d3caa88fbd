"""Training on pairs that were made elsewhere: the losses are those of TRL's DPOTrainer on the same pairs."""

from __future__ import annotations

import gzip
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from logodata.cli import main as logodata
from logodata.dataset.samples import read_samples, write_samples
from logotrain.cli import main
from tests.data_sets import write_manifest
from tests.logotrain.conftest import sample_of

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are of help<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM2's: ChatML with a system message of its own."""

DOCUMENTS = [
    f"The mill of Vell holds {n} sacks of green millet, and the owl sleeps in loft {n % 5}." for n in range(12)
]
QUESTIONS = [
    f"How many sacks are there, {name}?"
    for name in ["Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo", "Kit", "Lou"]
]
CHOSEN = [f"There are {n} sacks." for n in range(12)]
REJECTED = [f"The owl counted {3 * n + 1} of them." for n in range(12)]
PROMPTS = [f"{document}\n\n{question}" for document, question in zip(DOCUMENTS, QUESTIONS, strict=True)]

Row = dict[str, Any]


def rows_of(make: Callable[[int], Row]) -> list[Row]:
    return [make(n) for n in range(12)]


def user(n: int) -> Row:
    return {"role": "user", "content": PROMPTS[n]}


def said(text: str) -> Row:
    return {"role": "assistant", "content": text}


def rendered(n: int) -> str:
    system = "<|im_start|>system\nYou are of help<|im_end|>\n"
    return f"{system}<|im_start|>user\n{PROMPTS[n]}<|im_end|>\n<|im_start|>assistant\n"


CONVERSATIONS = rows_of(lambda n: {"prompt": [user(n)], "chosen": [said(CHOSEN[n])], "rejected": [said(REJECTED[n])]})
PLAIN = rows_of(lambda n: {"prompt": PROMPTS[n], "chosen": f" {CHOSEN[n]}", "rejected": f" {REJECTED[n]}"})
RENDERED = rows_of(lambda n: {"prompt": rendered(n), "chosen": CHOSEN[n], "rejected": REJECTED[n]})
IMPLICIT = rows_of(lambda n: {"chosen": f"{PROMPTS[n]} {CHOSEN[n]}", "rejected": f"{PROMPTS[n]} {REJECTED[n]}"})

FORMS: dict[str, tuple[list[Row], list[Row]]] = {
    # the pairs in each form, and the same in one that TRL reads
    "standard": (PLAIN, PLAIN),
    "standard, rendered": (RENDERED, RENDERED),
    "standard, implicit": (IMPLICIT, IMPLICIT),
    "conversational": (CONVERSATIONS, CONVERSATIONS),
    "conversational, implicit": (
        rows_of(lambda n: {"chosen": [user(n), said(CHOSEN[n])], "rejected": [user(n), said(REJECTED[n])]}),
        CONVERSATIONS,
    ),
    "ultrafeedback binarized": (
        rows_of(
            lambda n: {
                "prompt": PROMPTS[n],
                "chosen": [user(n), said(CHOSEN[n])],
                "rejected": [user(n), said(REJECTED[n])],
                "messages": [user(n), said(CHOSEN[n])],
                "score_chosen": 8.5,
                "score_rejected": 3.0,
            }
        ),
        CONVERSATIONS,
    ),
    "sharegpt": (
        rows_of(
            lambda n: {
                "conversations": [{"from": "human", "value": PROMPTS[n]}],
                "chosen": {"from": "gpt", "value": CHOSEN[n]},
                "rejected": {"from": "gpt", "value": REJECTED[n]},
            }
        ),
        CONVERSATIONS,
    ),
    "alpaca": (
        rows_of(
            lambda n: {
                "instruction": DOCUMENTS[n],
                "input": f"\n{QUESTIONS[n]}",
                "chosen": CHOSEN[n],
                "rejected": REJECTED[n],
            }
        ),
        CONVERSATIONS,
    ),
    "longreward": (
        rows_of(
            lambda n: {
                "idx": n,
                "context": DOCUMENTS[n],
                "query": QUESTIONS[n],
                "win_response": CHOSEN[n],
                "lose_response": REJECTED[n],
            }
        ),
        CONVERSATIONS,
    ),
    "ultrafeedback": (
        rows_of(
            lambda n: {
                "instruction": PROMPTS[n],
                "completions": [
                    {"response": REJECTED[n], "overall_score": 2.0},
                    {"response": CHOSEN[n], "overall_score": 7.5},
                ],
            }
        ),
        CONVERSATIONS,
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    from tests.conftest import make_model

    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    make_model(len(tokenizer), initializer_range=0.05).save_pretrained(folder)
    return folder


def trl_losses(model: Path, rows: list[Row], folder: Path) -> list[float]:
    """The losses of two steps of TRL's DPOTrainer over all rows.

    In a conversation TRL also trains on what the template writes after the end of the turn, here a line end. That is
    taken off its own tokens, which must be all that is taken.
    """
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl import DPOConfig, DPOTrainer

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    arguments = DPOConfig(
        output_dir=str(folder),
        beta=0.1,
        max_length=None,
        per_device_train_batch_size=len(rows),
        num_train_epochs=2,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer: Any = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    [line_end] = tokenizer.encode("\n", add_special_tokens=False)

    def ended(row: Row) -> Row:
        for side in ("chosen_ids", "rejected_ids"):
            end = row[side].index(tokenizer.eos_token_id) + 1
            assert row[side][end:] in ([], [line_end])
            row[side] = row[side][:end]
        return row

    trainer.train_dataset = trainer.train_dataset.map(ended)
    losses: list[float] = []
    compute = trainer.compute_loss

    def recorded(*arguments: Any, **options: Any) -> Any:
        found = compute(*arguments, **options)
        losses.append(float(found[0] if isinstance(found, tuple) else found))
        return found

    trainer.compute_loss = recorded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return losses


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[Row]], list[float]]:
    known: dict[int, list[float]] = {}

    def of(rows: list[Row]) -> list[float]:
        if id(rows) not in known:
            known[id(rows)] = trl_losses(model, rows, tmp_path_factory.mktemp("trl"))
        return known[id(rows)]

    return of


OBJECTIVE = (
    *("objective.name=dpo", "objective.beta=0.1", "tuning=full", "dtype=float32", "epochs=2", "samples_per_step=12"),
    *("optimizer.lr=1e-3", "optimizer.weight_decay=0", "optimizer.warmup_ratio=0", "optimizer.schedule=constant"),
    *("collapse.max_repetition=null", "recompute=none"),
)


def train(model: Path, data: Path | str, out: Path, *more: str) -> int:
    return main(["run", "--model", str(model), "--data", str(data), "-o", str(out), *OBJECTIVE, *more])


def losses_of(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def write_lines(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", FORMS)
def test_two_steps_have_the_losses_of_trl(
    name: str, model: Path, expected: Callable[[list[Row]], list[float]], tmp_path: Path
) -> None:
    rows, same_for_trl = FORMS[name]
    assert train(model, write_lines(tmp_path / "pairs.jsonl", rows), tmp_path / "run") == 0
    theirs = expected(same_for_trl)
    assert theirs[0] == pytest.approx(0.693147, abs=1e-5)
    assert abs(theirs[1] - theirs[0]) > 0.01  # something was learnt, and the second loss tells pairs apart
    assert losses_of(tmp_path / "run") == pytest.approx(theirs, abs=1e-5)


def saved(path: Path, rows: list[Row]) -> None:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(str(path))


def saved_splits(path: Path, rows: list[Row]) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:2])}).save_to_disk(str(path))


def as_csv(path: Path, rows: list[Row]) -> None:
    import csv

    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0])
        writer.writerows([[json.dumps(value) for value in row.values()] for row in rows])


CONTAINERS: dict[str, tuple[str, str, Callable[[Path, list[Row]], object]]] = {
    "json list": ("pairs.json", "", lambda path, rows: path.write_text(json.dumps(rows, indent=1))),
    "byte order mark": (
        "pairs.jsonl",
        "",
        lambda path, rows: path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, rows)).encode()),
    ),
    "gzip": (
        "pairs.jsonl.gz",
        "",
        lambda path, rows: path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode())),
    ),
    "parquet": ("pairs.parquet", "", lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path)),
    "csv": ("pairs.csv", "", as_csv),
    "saved": ("saved", "", saved),
    "saved splits": ("saved", ":train", saved_splits),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_losses(
    name: str, model: Path, expected: Callable[[list[Row]], list[float]], tmp_path: Path
) -> None:
    file, ending, write = CONTAINERS[name]
    write(tmp_path / file, CONVERSATIONS)
    assert train(model, f"{tmp_path / file}{ending}", tmp_path / "run") == 0
    assert losses_of(tmp_path / "run") == pytest.approx(expected(CONVERSATIONS), abs=1e-5)


def test_a_folder_of_files_is_a_hub_data_set(
    model: Path, expected: Callable[[list[Row]], list[float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    write_lines(tmp_path / "hub" / "data" / "train.jsonl", CONVERSATIONS)
    assert train(model, tmp_path / "hub", tmp_path / "run") == 0
    assert losses_of(tmp_path / "run") == pytest.approx(expected(CONVERSATIONS), abs=1e-5)


def test_a_run_says_what_it_understood_and_goes_on_without_importing_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, out = (
        write_lines(tmp_path / "pairs.jsonl", [*CONVERSATIONS, {**CONVERSATIONS[0], "chosen": None}]),
        tmp_path / "r",
    )
    assert train(model, pairs, out, "max_steps=1") == 0
    said_first = capsys.readouterr().err
    told = "read as TRL's conversational pairs with an explicit prompt: 12 pairs, 1 left out: missing chosen 1"
    assert f"pairs.jsonl: {told}" in said_first
    assert "positions: natural" in said_first
    assert json.loads((out / "recipe.resolved.json").read_text())["positions"]["mode"] == "natural"
    before = (out / "data" / "manifest.json").stat().st_mtime_ns
    shutil.rmtree(out / "final")
    assert train(model, pairs, out, "max_steps=1") == 0
    assert "read as" not in capsys.readouterr().err
    assert (out / "data" / "manifest.json").stat().st_mtime_ns == before

    shutil.rmtree(out / "final")
    write_lines(pairs, CONVERSATIONS[:6])
    assert train(model, pairs, out, "max_steps=1") == 2
    refused = capsys.readouterr().err.splitlines()[-1]
    assert "the pairs have changed since they were imported into" in refused


def test_a_run_that_trained_nothing_imports_again_where_settings_change(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a first step that did not fit into memory."""
    pairs, out = write_lines(tmp_path / "pairs.jsonl", CONVERSATIONS), tmp_path / "run"
    assert train(model, pairs, out, "max_steps=1") == 0
    for name in ("final", "checkpoints"):
        shutil.rmtree(out / name)
    (out / "metrics.jsonl").unlink()
    assert train(model, pairs, out, "max_steps=1", "positions.target_length=512") == 0
    assert json.loads((out / "data" / "manifest.json").read_text())["pairs"]["window"] == 512

    shutil.rmtree(out / "final")  # once a step is trained, the settings stay
    capsys.readouterr()
    assert train(model, pairs, out, "max_steps=1", "positions.target_length=1024") == 2
    assert "now it is" in capsys.readouterr().err


def test_what_lies_in_the_place_of_an_import_is_not_deleted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, out = write_lines(tmp_path / "pairs.jsonl", CONVERSATIONS), tmp_path / "run"
    (out / "data" / "data").mkdir(parents=True)
    write_samples(out / "data" / "data" / "samples.parquet", [sample_of("s0")])
    write_manifest(out / "data")
    assert train(model, pairs, out, "max_steps=1") == 2
    assert "data: holds a data set of a build (choose another -o)" in capsys.readouterr().err.replace("\n", " ")
    assert (out / "data" / "data" / "samples.parquet").exists()


def test_the_fault_of_an_import_is_told_whatever_it_left(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = write_lines(tmp_path / "twice.jsonl", [{**row, "id": "a"} for row in CONVERSATIONS])
    none = write_lines(tmp_path / "none.jsonl", [{**row, "chosen": None} for row in CONVERSATIONS])
    for _ in range(2):
        assert train(model, twice, tmp_path / "twice", "max_steps=1") == 2
        assert "pair id 'a' stands at" in capsys.readouterr().err
        assert train(model, none, tmp_path / "none", "max_steps=1", "data.pairs.format=conversational") == 2
        assert "no pair was kept" in capsys.readouterr().err


def test_an_import_of_the_users_own_is_not_deleted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, pairs = (write_lines(tmp_path / f"{name}.jsonl", CONVERSATIONS[:n]) for name, n in (("own", 3), ("pairs", 4)))
    assert logodata([*("import", str(own), "--model", str(model)), "-o", str(tmp_path / "run" / "data")]) == 0
    assert train(model, pairs, tmp_path / "run", "max_steps=1") == 2
    assert len(read_samples(tmp_path / "run" / "data")) == 3
    capsys.readouterr()
    assert train(model, pairs, tmp_path / "other", "max_steps=1") == 0
    for name in ("final", "checkpoints"):
        shutil.rmtree(tmp_path / "other" / name)
    (tmp_path / "other" / "metrics.jsonl").unlink()
    assert train(model, tmp_path / "misspelt.jsonl", tmp_path / "other", "max_steps=1") == 2
    assert "misspelt.jsonl: no such file or folder" in capsys.readouterr().err


def test_a_folder_of_packed_pairs_is_trained_on(model: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in CONVERSATIONS)
    (tmp_path / "pairs" / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert train(model, tmp_path / "pairs", tmp_path / "run", "max_steps=1") == 0


def test_a_run_goes_on_without_its_pairs(model: Path, tmp_path: Path) -> None:
    pairs, out = write_lines(tmp_path / "pairs.jsonl", CONVERSATIONS), tmp_path / "run"
    assert train(model, pairs, out, "max_steps=1", "data.pairs.prompt=message") == 0
    shutil.rmtree(out / "final")
    pairs.unlink()
    assert train(model, pairs, out, "max_steps=1", "data.pairs.prompt=message") == 0
    assert train(model, pairs, tmp_path / "other", "max_steps=1") == 2


def test_a_finished_run_needs_no_pairs(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, out = write_lines(tmp_path / "pairs.jsonl", CONVERSATIONS), tmp_path / "run"
    assert train(model, pairs, out, "max_steps=1") == 0
    pairs.unlink()
    assert train(model, pairs, out, "max_steps=1") == 0
    assert "already finished" in capsys.readouterr().err


@pytest.mark.parametrize("held_out", ["a file", "a share"])
def test_pairs_are_held_out(held_out: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prompt of several rows is held out whole."""
    given = "0.5" if held_out == "a share" else str(write_lines(tmp_path / "other.jsonl", CONVERSATIONS[6:]))
    twice = [row for row in CONVERSATIONS[:6] for _ in range(2)]
    pairs = write_lines(tmp_path / "pairs.jsonl", twice)
    assert train(model, pairs, tmp_path / "run", "max_steps=1", f"data.validation={given}") == 0
    told = capsys.readouterr().err
    assert "held out: 6 samples of " + ("3" if held_out == "a share" else "6") in told
    measured = f"next: logoeval pairs --model {tmp_path}/run/final --data {tmp_path}/run/validation-data -o"
    assert (measured in told) is (held_out == "a file")
    assert "logoeval niah" not in told
    assert "no pairs were held out" not in told
    assert len((tmp_path / "run" / "validation.jsonl").read_text().splitlines()) == 2


def test_plan_and_dry_run_touch_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write_lines(tmp_path / "pairs.jsonl", CONVERSATIONS)
    words = ["--model", str(model), "--data", str(pairs)]
    assert main(["plan", *words, "--card", "cpu", "--gpus", "1"]) == 0
    assert main(["run", *words, "-o", str(tmp_path / "run"), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "mode: natural" in shown.out
    assert "12 samples" in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_run_has_the_settings_of_an_import(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each error names the setting as a run has it, and with all of them the samples are those of the import."""
    from logodata.cli import main as logodata
    from logodata.dataset.samples import read_samples

    lines = ["ask,better,worse", *(f"Café {n}?,There are {n}.,Nobody knows {n}." for n in range(4))]
    pairs, out = tmp_path / "pairs.csv", tmp_path / "run"
    pairs.write_bytes("\n".join(lines).encode("cp1252"))
    needed = {
        "data.pairs.encoding=": "cp1252",
        "data.pairs.columns.chosen=": "better",
        "data.pairs.columns.rejected=": "worse",
    }
    words = ["max_steps=1", "samples_per_step=4", "data.pairs.columns.prompt=ask"]
    for setting, value in needed.items():
        assert train(model, pairs, out, *words) == 2
        assert f"(set {setting}" in capsys.readouterr().err.splitlines()[-1]
        assert not out.exists()
        words.append(setting + value)
    assert train(model, pairs, out, *words) == 0
    told = capsys.readouterr().err
    assert "data.pairs.prompt=message applies it" in told
    assert told.splitlines()[-1].startswith("no pairs were held out (data.validation=0.1)")
    assert train(model, pairs, tmp_path / "message", *words, "data.pairs.prompt=message") == 0

    imported = [word.removeprefix("data.pairs.") for word in words[2:]]
    given = ["import", str(pairs), "--model", str(model), "-o", str(tmp_path / "data"), *imported, "prompt=message"]
    assert logodata(given) == 0
    assert read_samples(tmp_path / "message" / "data") == read_samples(tmp_path / "data")
    assert read_samples(out / "data") != read_samples(tmp_path / "data")

    capsys.readouterr()
    assert train(model, tmp_path / "data", tmp_path / "other", "data.pairs.prompt=message") == 2
    assert "data.pairs says how pairs are read, and there are none" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_pairs_are_not_imported_for_positions_beyond_the_window(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_lines(tmp_path / "pairs.jsonl", CONVERSATIONS)
    assert train(model, pairs, tmp_path / "run", "positions.target_length=1M") == 2
    assert "positions.target_length=1048576 is beyond the model's window of" in capsys.readouterr().err
    assert not (tmp_path / "run" / "data").exists()


@pytest.mark.parametrize("mode", ["mixed", "sparse", "continuous"])
def test_the_papers_positions_need_chunks(
    mode: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write_lines(tmp_path / "pairs.jsonl", CONVERSATIONS)
    assert train(model, pairs, tmp_path / "run", "max_steps=1", f"positions.mode={mode}") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"positions.mode={mode} needs chunks, and no sample has any" in line

    cut = (f"positions.mode={mode}", "data.pairs.chunk_tokens=16")
    assert train(model, pairs, tmp_path / "other", "max_steps=1", *cut) == 0


@pytest.mark.parametrize("mode", ["pose", "randpos"])
def test_other_positions_need_none(mode: str, model: Path, tmp_path: Path) -> None:
    pairs = write_lines(tmp_path / "pairs.jsonl", CONVERSATIONS)
    assert train(model, pairs, tmp_path / "run", "max_steps=1", f"positions.mode={mode}") == 0


def test_the_shared_prompt_takes_several_rejected_answers(model: Path, tmp_path: Path) -> None:
    """One row with M answers, and M rows with ``--group``, are the same training."""
    from logodata.cli import main as logodata

    listed = [{**row, "rejected": [row["rejected"], [said("No.")]]} for row in CONVERSATIONS]
    apart = [{**row, "rejected": answer} for row in listed for answer in row["rejected"]]
    found = []
    for name, rows, more in [("listed", listed, []), ("apart", apart, ["--group"])]:
        pairs, data = write_lines(tmp_path / f"{name}.jsonl", rows), tmp_path / name
        assert logodata(["import", str(pairs), "--model", str(model), "-o", str(data), *more]) == 0
        assert train(model, data, tmp_path / f"run-{name}", "objective.name=logo", "objective.gamma=1") == 0
        found.append(losses_of(tmp_path / f"run-{name}"))
    assert found[0] == found[1]
