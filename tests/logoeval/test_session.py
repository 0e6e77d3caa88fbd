"""What an evaluation knows of its model before it loads weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig, LlamaForCausalLM

from logodata.common.errors import UserError
from logodata.models.adapters import adapter_fingerprint, write_base_config
from logoeval.cli import main
from logoeval.recipe.settings import EvalRecipe
from logoeval.run import evaluate
from logoeval.session import Session
from logoeval.tasks.perplexity import PerplexitySettings
from tests.conftest import make_model


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: LlamaForCausalLM) -> Path:
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "final"))
    return tmp_path / "final"


def write_scaled(adapter: Path, model_dir: Path, factor: float) -> None:
    config = AutoConfig.from_pretrained(model_dir)
    config.rope_parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": factor}
    config.max_position_embeddings = int(2048 * factor)
    write_base_config(adapter, config)


def test_the_window_is_that_of_the_adapter(adapter: Path, tiny_model_dir: Path) -> None:
    recipe = EvalRecipe(model=str(tiny_model_dir), adapter=adapter)
    assert Session(recipe).window == 2048
    write_scaled(adapter, tiny_model_dir, 4)
    assert Session(recipe).window == 8192
    Session(recipe).check_window(8192, "niah.lengths")
    with pytest.raises(UserError, match="needs 8193 positions, the model has 8192"):
        Session(recipe).check_window(8193, "niah.lengths")
    engine = {"kind": "transformers", "max_model_len": 4096}
    reasons = EvalRecipe(model=str(tiny_model_dir), adapter=adapter, engine=engine, thinking_tokens=1000)
    Session(reasons).check_room(3096, "niah.lengths")
    with pytest.raises(UserError, match=r"^niah\.lengths and thinking_tokens=1000 needs 4097 .*max_model_len is 4096"):
        Session(reasons).check_room(3097, "niah.lengths")
    with pytest.raises(UserError, match="thinking_tokens=1000 needs 8193 positions, the model has 8192"):
        Session(reasons).check_room(7193, "niah.lengths")
    assert Session(recipe).model.config.max_position_embeddings == 8192
    assert Session(EvalRecipe(model=str(tiny_model_dir))).window == 2048


def test_vllm_leaves_room_for_the_weights_that_score(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are on one GPU, and vLLM takes 90 % of it by default: what is too much is told before hours of answers."""
    recipe = EvalRecipe(
        model=str(tiny_model_dir), engine={"kind": "vllm", "dtype": "bfloat16"}, niah={}, ppl=PerplexitySettings()
    )
    session = Session(recipe)
    session.check_room_beside_vllm()  # on a CPU the machine's memory is another one
    monkeypatch.setitem(vars(session), "device", "cuda:0")
    gpu = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: gpu)
    session.check_room_beside_vllm()
    gpu.total_memory = 24 << 30
    said = r"log-probabilities need 6 GiB beside vLLM, of the GPU's 24 \(set it to 0\.74 or less\)"
    with pytest.raises(UserError, match=said):
        evaluate(recipe, ["niah", "ppl"], tmp_path / "out", session=session)
    assert not (tmp_path / "out" / "results.json").exists()
    gpu.total_memory = 8 << 30
    with pytest.raises(UserError, match=r"set engine\.kind=transformers for these tasks"):
        session.check_room_beside_vllm()
    monkeypatch.setitem(vars(session), "device", "cuda:1")  # vLLM is on the first one
    session.check_room_beside_vllm()


def test_the_fingerprint_tells_ropes_apart(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    found = {adapter_fingerprint(adapter)}
    for factor in (2, 4):
        write_scaled(adapter, tiny_model_dir, factor)
        found.add(adapter_fingerprint(adapter))
    assert len(found) == 3
    shutil.copytree(adapter, tmp_path / "copy")
    assert adapter_fingerprint(tmp_path / "copy") in found
    assert adapter_fingerprint(None) is None
    with pytest.raises(UserError, match="holds no adapter"):
        adapter_fingerprint(tmp_path)


@pytest.fixture
def commands(tiny_model_dir: Path, tmp_path: Path, make_build: Callable[..., Path]) -> dict[str, list[str]]:
    """Every task on a small scale."""
    row = {"_id": "1", "input": "Where?", "context": "In the mill. " * 200, "answers": ["mill"], "all_classes": None}
    row |= {"dataset": "qasper", "length": 600, "language": "en"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    settings = {
        "longbench": ["--data", str(tmp_path / "rows.jsonl")],
        "niah": ["niah.lengths=[700]", "niah.num_samples=1", "niah.haystacks=noise"],
        "pairs": ["--data", str(make_build(count=1))],
        "ppl": ["ppl.lengths=[64]", "ppl.num_documents=1"],
    }
    model = ["--model", str(tiny_model_dir), "-o", str(tmp_path / "out")]
    return {task: [task, *model, *overrides] for task, overrides in settings.items()}


@pytest.mark.parametrize("task", ["longbench", "niah", "pairs", "ppl"])
@pytest.mark.parametrize("changes", [{"hidden_size": 32}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}], ids=str)
def test_an_adapter_of_another_model_is_one_line(
    task: str,
    changes: dict[str, int],
    commands: dict[str, list[str]],
    tiny_tokenizer: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from peft import LoraConfig, get_peft_model

    other = get_peft_model(make_model(len(tiny_tokenizer), **changes), LoraConfig(r=2, target_modules=["q_proj"]))
    other.save_pretrained(str(tmp_path / "final"))
    assert main([*commands[task], "--adapter", str(tmp_path / "final")]) == 2
    error = capsys.readouterr().err
    assert "the adapter does not fit" in error
    assert "(give the model that it was trained on" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("longbench", "the fixed part of qasper's prompt has"),
        ("niah", "niah.lengths: the longest, 700 tokens, with niah.max_new_tokens=128 needs 828 positions"),
        ("pairs", "the longest held-out prompt with pairs.max_new_tokens needs"),
        ("ppl", "the longest of ppl.lengths needs 64 positions"),
    ],
)
def test_a_window_too_small_is_one_line(
    task: str,
    message: str,
    commands: dict[str, list[str]],
    tiny_tokenizer: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_model(len(tiny_tokenizer), max_position_embeddings=48).save_pretrained(tmp_path / "narrow")
    tiny_tokenizer.save_pretrained(tmp_path / "narrow")
    assert main([*commands[task], "--model", str(tmp_path / "narrow")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_adapter_trained_on_another_name_is_told(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    config = adapter / "adapter_config.json"
    recipe = EvalRecipe(
        model=str(tiny_model_dir), adapter=adapter, ppl=PerplexitySettings(lengths=(16,), num_documents=1)
    )
    for name, told in (("org/other", True), (f"org/{tiny_model_dir.name}", False), (None, False)):
        content = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps({**content, "base_model_name_or_path": name}), encoding="utf-8")
        notes = evaluate(recipe, ["ppl"], tmp_path / str(name)).tasks["ppl"].notes
        expected = f"the adapter was trained on org/other, and is measured on {tiny_model_dir}"
        assert (expected in notes) == told
