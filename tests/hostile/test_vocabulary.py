"""A tokenizer with more tokens than the model's embedding has rows: each command says so before it computes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from logodata.cli import main as logodata
from logodata.common.errors import UserError
from logodata.common.files import read_json, write_json
from logodata.dataset.samples import read_samples, write_samples
from logodata.engines import Engine, GenerationRequest, Sampling
from logodata.engines.settings import EngineSettings, open_engine
from logodata.engines.transformers_engine import TransformersEngine
from logodata.engines.vllm_engine import VllmEngine
from logodata.models.facts import model_fingerprint
from logodata.models.loading import load_config, load_model, load_tokenizer
from logodata.models.vocabulary import check_ids, vocabulary_size
from logoeval.cli import main as logoeval
from logoeval.tasks.needles.attention_trace import trace_answers
from tests.conftest import CHATML, make_model, make_tokenizer
from tests.logodata.build.test_build import SMALL, write_documents
from tests.logodata.engines.stub_server import StubServer
from tests.logoeval.conftest import write_build

ROWS = 269
SAID = f"token id {ROWS} is outside the model's vocabulary of {ROWS} (take the tokenizer that the model was trained"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer, and chat template, got a token that its embedding did not."""
    folder, tokenizer = tmp_path_factory.mktemp("wide"), make_tokenizer()
    assert len(tokenizer) == ROWS
    make_model(ROWS).save_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
    tokenizer.chat_template = CHATML.replace("<|im_start|>assistant", "<|extra|>assistant")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path: Path, wide: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Documents, LongBench rows, texts, a task of short contexts, and a data set of this tokenizer."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_documents(tmp_path)
    row = {"_id": "1", "dataset": "qasper", "input": "Q?", "context": "A mill.", "answers": ["A"], "length": 3}
    (tmp_path / "qasper.jsonl").write_text(json.dumps(row))
    (tmp_path / "text.txt").write_text("The mill stands by the bridge. " * 60)
    data = write_build(tmp_path / "data", load_tokenizer(str(wide)))
    samples = read_samples(data)
    ids = [ROWS, *samples[0].prompt_ids]
    chunks = [
        c.model_copy(update={"token_start": c.token_start + 1, "token_end": c.token_end + 1}) for c in samples[0].chunks
    ]
    write_samples(
        data / "data" / "train-00000-of-00001.parquet",
        [samples[0].model_copy(update={"prompt_ids": ids, "chunks": chunks}), *samples[1:]],
    )
    manifest = read_json(data / "manifest.json")
    write_json(data / "manifest.json", {**manifest, "model_fingerprint": model_fingerprint(str(wide))})
    return tmp_path


COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "build": (logodata, ["build", "my.jsonl", *SMALL]),
    "questions": (logodata, ["questions", "text.txt", "questions_per_document=1"]),
    "niah": (logoeval, ["niah", "niah.lengths=[1024]", "niah.num_samples=1", "niah.haystacks=[noise]"]),
    "longbench": (logoeval, ["longbench", "--data", "qasper.jsonl"]),
    "qa": (logoeval, ["qa", "--data", "data"]),
    "pairs": (logoeval, ["pairs", "--data", "data", "pairs.max_new_tokens=1"]),
    "stats --log-probs": (logodata, ["stats", "data", "--log-probs"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(
    files: Path, wide: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(files)
    main, arguments = COMMANDS[name]
    output = {"stats": [], "questions": ["-o", "out.jsonl"]}.get(arguments[0], ["-o", "out"])
    assert main([*arguments, "--model", str(wide), *output]) == 2
    error = capsys.readouterr().err
    assert SAID in error
    assert "Traceback" not in error


@pytest.mark.parametrize("task", ["ppl", "short", "spoken"])
def test_texts_that_become_such_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    """A word of a field that was added to the tokenizer only."""
    import datasets
    import yaml

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model, tokenizer = tmp_path / "model", make_tokenizer()
    make_model(ROWS).save_pretrained(model)
    tokenizer.add_tokens(["millet"])
    tokenizer.save_pretrained(model)
    arguments = ["short", "--tasks", "own", "--include-path", str(tmp_path / "tasks")]
    if task == "ppl":
        (tmp_path / "text.txt").write_text("The millet stands by the bridge. " * 60)
        arguments = ["ppl", f"ppl.text={tmp_path / 'text.txt'}", "ppl.lengths=[64]", "ppl.num_documents=1"]
    else:
        pytest.importorskip("lm_eval")
        from lm_eval.tasks import TaskManager

        monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **o: TaskManager(**{**o, "include_defaults": False}))
        (tmp_path / "tasks").mkdir()
        rows = tmp_path / "tasks" / "own.jsonl"
        rows.write_text(json.dumps({"question": "Say millet.", "choices": ["no", "yes"], "answer": 0}) + "\n")
        config = {
            "task": "own",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
        }
        if task == "short":
            config |= {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}"}
        else:
            config |= {"output_type": "generate_until", "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2}}
            config |= {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}
        (tmp_path / "tasks" / "own.yaml").write_text(yaml.safe_dump(config))
    assert logoeval([*arguments, "--model", str(model), "-o", str(tmp_path / "out")]) == 2
    assert SAID in capsys.readouterr().err


def test_engines(wide: Path) -> None:
    """The token may be a prompt's, or one that was to end the response. None is sent to a server either."""
    server = StubServer()
    try:
        server.cards = [{"id": "m"}]
        remote = EngineSettings(kind="openai", base_urls=(server.url,), served_model="m")
        model = load_model(str(wide))
        engines: list[Engine] = [TransformersEngine(model), open_engine(remote, str(wide))]
        for engine in engines:
            for prompt, stops in (((5, ROWS), (2,)), ((5, 6), (2, ROWS))):
                with pytest.raises(UserError, match=r"request 'r': token id 269 is outside"):
                    list(engine.generate([GenerationRequest("r", prompt, Sampling(2, stops, min_new_tokens=1))]))
        assert not server.bodies
        with pytest.raises(UserError, match="prompt or answer: token id 269 is outside"):
            trace_answers(model, [5, 6], [[7, ROWS]])
    finally:
        server.close()


def test_vllm(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(max_model_len=100)
    modules = {
        "vllm": SimpleNamespace(LLM=lambda **_: SimpleNamespace(model_config=config), __version__="0"),
        "vllm.platforms": SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: False)),
        "vllm.inputs": SimpleNamespace(tokens_input=None),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(UserError, match=r"request 'r': token id 269 is outside"):
        list(VllmEngine(str(wide), EngineSettings()).generate([GenerationRequest("r", (5, ROWS), Sampling(2, (2,)))]))


def test_an_unused_token_is_no_fault(wide: Path) -> None:
    """Published models have tokenizers with a token more than the model has rows."""
    tokenizer, model = load_tokenizer(str(wide)), load_model(str(wide))
    assert len(tokenizer) > vocabulary_size(load_config(str(wide))) == len(model.get_input_embeddings().weight)
    assert list(TransformersEngine(model).generate([GenerationRequest("r", (5, ROWS - 1), Sampling(2, ()))]))
    check_ids(ROWS, [], [0], range(ROWS), where="")
    for ids in ([-1], [5, ROWS]):
        with pytest.raises(UserError, match=rf"^x: token id {ids[-1]} is outside"):
            check_ids(ROWS, [3], ids, where="x")
