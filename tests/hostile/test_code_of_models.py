"""Models that bring Python along: it is never run, whatever stands at the keyboard."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.contexts.embedding import SentenceEmbedder
from logodata.models.adapter_fit import check_adapter_fits
from logodata.models.loading import load_config, load_model, load_tokenizer, trained_rope

REFUSED = r"cannot load .*: it needs code from its own repository, which is never run \(take a model that transformers"


@pytest.fixture(autouse=True)
def _yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks whether to run code, unless it is told that it may not."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path, trap: Path) -> Path:
    """A model whose folder holds code for everything."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    code = f"from pathlib import Path\nPath({str(trap)!r}).write_text('code ran')\nclass Own: pass\n"
    (folder / "own.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    return folder


LOADERS: dict[str, Callable[[str], object]] = {
    "config": load_config,
    "model": load_model,
    "tokenizer": load_tokenizer,
    "embedder": lambda name: SentenceEmbedder(name, 2, "evaluator.embedding_model"),
}


@pytest.mark.parametrize("loader", ["config", "model"])
def test_a_model_of_its_own_kind_is_refused(folder: Path, trap: Path, loader: str) -> None:
    change(
        folder / "config.json",
        model_type="own",
        auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    )
    with pytest.raises(UserError, match=REFUSED):
        LOADERS[loader](str(folder))
    assert not trap.exists()


def test_a_tokenizer_of_its_own_kind_is_refused(folder: Path, trap: Path) -> None:
    change(
        folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map={"AutoTokenizer": ["own.Own", None]}
    )
    with pytest.raises(UserError, match=REFUSED):
        load_tokenizer(str(folder))
    assert not trap.exists()


def test_a_known_kind_is_loaded_by_our_code(folder: Path, trap: Path) -> None:
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoModel")
    change(folder / "config.json", auto_map=dict.fromkeys(names, "own.Own"))
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Own", None]})
    load_tokenizer(str(folder))
    assert type(load_model(str(folder))).__name__ == "LlamaForCausalLM"
    assert not trap.exists()


def test_an_embedding_model_of_its_own_kind_is_refused(folder: Path, trap: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match="cannot load the embedding model"):
        LOADERS["embedder"](str(folder))
    assert not trap.exists()


def test_an_adapter_whose_base_config_names_code(folder: Path, trap: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").touch()
    shutil.copy(folder / "config.json", adapter / "base_config.json")
    shutil.copy(folder / "own.py", adapter)
    change(adapter / "base_config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})
    with pytest.raises(UserError, match=REFUSED):
        trained_rope(adapter)
    assert not trap.exists()


DAMAGED: dict[str, tuple[str, bytes]] = {
    "config.json: not JSON": ("config.json", b"{"),
    "config.json: a list": ("config.json", b"[]"),
    "config.json: nested": ("config.json", b'{"a":' * 100_000),
    "config.json: text for numbers": ("config.json", b'{"model_type": "llama", "hidden_size": "many"}'),
    "config.json: below zero": ("config.json", b'{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": -4}'),
    "config.json: no heads": ("config.json", b'{"model_type": "llama", "num_attention_heads": 0, "hidden_size": 8}'),
    "config.json: another kind": ("config.json", b'{"model_type": "bert"}'),
    "weights: not safetensors": ("model.safetensors", b"PK" + b"\0" * 64),
    "weights: a header of exabytes": ("model.safetensors", b"\xff" * 64),
    "weights: empty": ("model.safetensors", b""),
    "weights: others": (
        "model.safetensors",
        b"\x48\0\0\0\0\0\0\0"
        + b'{"lm_head.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(72)
        + b"\0\0\0\0",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_model_is_one_line(folder: Path, case: str) -> None:
    name, content = DAMAGED[case]
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot load the model") as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"version": "1.0", "model": {}}', b'{"a":' * 100_000])
def test_a_damaged_tokenizer_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        load_tokenizer(str(folder))


def test_a_damaged_adapter_is_one_line(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for config, said in [
        (b"{", r"adapter_config\.json: not valid JSON"),
        (b"[]", "not an adapter's config"),
        (b'"r"', "not an adapter's config"),
        (b'{"peft_type": "own.Own"}', r"cannot load the adapter: KeyError 'own\.Own'"),
        (b'{"peft_type": "LORA", "r": "x"}', r"adapter_model\.safetensors: cannot read"),
    ]:
        (adapter / "adapter_config.json").write_bytes(config)
        (adapter / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
        for refuse in (
            lambda: check_adapter_fits(str(folder), adapter),
            lambda: load_model(str(folder), adapter=adapter),
        ):
            with pytest.raises(UserError, match=said):
                refuse()
