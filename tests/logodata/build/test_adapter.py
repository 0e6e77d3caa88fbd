"""A build whose responses the adapter of a round before writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from logodata.cli import main
from logodata.dataset.samples import read_build_manifest, read_samples
from logodata.models.adapters import adapter_fingerprint
from logodata.models.facts import model_fingerprint
from logodata.models.loading import load_model
from tests.logodata.engines.stub_server import write_documents


@pytest.fixture
def adapter(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """One that changes what is said."""
    torch.manual_seed(3)
    model = LlamaForCausalLM.from_pretrained(tiny_model_dir)
    wrapped = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=64, init_lora_weights=False, target_modules=["q_proj", "down_proj"])
    )
    wrapped.save_pretrained(tmp_path / "final")
    return tmp_path / "final"


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., int]:
    documents = write_documents(tmp_path)

    def run(name: str, model: Path, *more: str) -> int:
        settings = ["chunking.chunk_tokens=48", "contexts.num_chunks=4", "contexts.critical_threshold=null"]
        settings += ["contexts.critical_top=2", "generation.max_new_tokens=8", "judge.enabled=false"]
        return main(["build", str(documents), *settings, "--model", str(model), "-o", str(tmp_path / name), *more])

    return run


def texts(folder: Path) -> list[list[str]]:
    return [[sample.chosen.text, *(response.text for response in sample.rejected)] for sample in read_samples(folder)]


def test_the_model_without_the_adapter_may_write_what_is_dispreferred(
    adapter: Path, build: Callable[..., int], tiny_model_dir: Path, tmp_path: Path
) -> None:
    by_base = "generation.rejected_by=base"
    assert build("with", tiny_model_dir, "--adapter", str(adapter)) == 0
    assert build("without", tiny_model_dir) == 0
    assert build("base", tiny_model_dir, by_base, "--adapter", str(adapter)) == 0
    assert build("none", tiny_model_dir, by_base) == 0  # without an adapter both are one model, as in a first round
    found = {name: {s.id: s for s in read_samples(tmp_path / name)} for name in ("with", "without", "base", "none")}
    assert found["none"] == found["without"]
    compared = found["base"].keys() & found["with"].keys() & found["without"].keys()
    assert compared
    for name in compared:
        assert found["base"][name].chosen == found["with"][name].chosen
        assert found["base"][name].rejected == found["without"][name].rejected
    assert any(found["with"][name].rejected != found["base"][name].rejected for name in compared)
    assert "answers without its adapter" in (tmp_path / "base" / "README.md").read_text()


def test_it_equals_a_build_by_the_merged_model(
    adapter: Path,
    build: Callable[..., int],
    tiny_model_dir: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    merged = tmp_path / "model"
    assert build("with", tiny_model_dir, "--adapter", str(adapter)) == 0
    assert build("without", tiny_model_dir) == 0
    load_model(str(tiny_model_dir), adapter=adapter).save_pretrained(merged)
    tiny_tokenizer.save_pretrained(merged)
    assert build("merged", merged) == 0
    assert texts(tmp_path / "with") == texts(tmp_path / "merged")
    assert texts(tmp_path / "with") != texts(tmp_path / "without")
    manifest = read_build_manifest(tmp_path / "with", "builds")
    assert manifest.model == str(tiny_model_dir)
    assert manifest.model_fingerprint == f"{model_fingerprint(str(tiny_model_dir))}+{adapter_fingerprint(adapter)}"
    assert f"with the adapter `{adapter}`" in (tmp_path / "with" / "README.md").read_text()

    # Its log-probabilities are those of the model with the adapter.
    capsys.readouterr()
    found = []
    for name in ("with", "merged"):
        assert main(["stats", str(tmp_path / name), "--log-probs", "--json"]) == 0
        found.append({**json.loads(capsys.readouterr().out), "model": None, "model_fingerprint": None})
    assert found[0] == found[1]

    # The folder is bound to the adapter's contents, and its log serves no other one.
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 32}))
    assert build("with", tiny_model_dir, "--adapter", str(adapter)) == 2
    assert "model_fingerprint" in capsys.readouterr().err


def test_what_is_no_adapter_is_told_first(
    build: Callable[..., int], tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build("out", tiny_model_dir, "--adapter", str(tmp_path / "none")) == 2
    assert "holds no adapter" in capsys.readouterr().err
    chat = ["engine.kind=chat", "engine.base_urls=http://127.0.0.1:9"]
    assert build("out", tiny_model_dir, "--adapter", str(tmp_path), *chat) == 2
    assert "told no adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
