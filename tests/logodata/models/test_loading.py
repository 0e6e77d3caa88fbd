"""Configs of models and adapters: what a scaled RoPE becomes, and the shapes that plans use without weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5OmniConfig,
    RobertaConfig,
)

import logodata.models.loading
from logodata.common.errors import UserError
from logodata.engines import GenerationRequest, Sampling
from logodata.engines.settings import EngineSettings, open_engine, weights_dtype
from logodata.engines.transformers_engine import TransformersEngine
from logodata.engines.vllm_engine import VllmEngine
from logodata.models.adapters import check_adapter, write_base_config
from logodata.models.facts import limited_attention, model_fingerprint, model_window
from logodata.models.known_shapes import known_shapes
from logodata.models.loading import dtype_for, load_config, load_model, load_tokenizer, trained_rope
from logodata.models.text_config import config_window, in_text_config, text_config
from logoeval.recipe.settings import EvalRecipe
from logoeval.session import Session, rope_and_window
from logoeval.tasks.needles.attention_trace import head_grid, trace_answers
from tests.conftest import make_model
from tests.logodata.engines.stub_server import free_url

ROPES: dict[str, dict[str, Any]] = {
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 2048},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "ntk": {"rope_type": "default", "rope_theta": 5e4},
}
WINDOW = 8192


def scaled(model_dir: Path, kind: str) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(model_dir)
    config.rope_parameters = dict(ROPES[kind])
    config.max_position_embeddings = WINDOW
    return config


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: LlamaForCausalLM) -> Path:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(tiny_model, config).save_pretrained(str(tmp_path / "final"))
    return tmp_path / "final"


def spread_logits(model: torch.nn.Module) -> torch.Tensor:
    """Of a row whose positions reach four times the old window."""
    positions = torch.arange(0, WINDOW, 200)[None]
    ids = torch.arange(3, 3 + positions.shape[1])[None]
    with torch.no_grad():
        return model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids)).logits


@pytest.mark.parametrize("kind", list(ROPES))
def test_an_adapter_meets_the_rope_it_was_trained_with(kind: str, adapter: Path, tiny_model_dir: Path) -> None:
    config = scaled(tiny_model_dir, kind)
    unscaled = spread_logits(load_model(str(tiny_model_dir), adapter=adapter))
    assert model_window(str(tiny_model_dir), adapter) == 2048
    write_base_config(adapter, config)
    assert model_window(str(tiny_model_dir), adapter) == WINDOW
    assert trained_rope(adapter) == {"rope_parameters": ROPES[kind], "max_position_embeddings": WINDOW}
    loaded = load_model(str(tiny_model_dir), adapter=adapter)
    assert loaded.config.max_position_embeddings == WINDOW
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, config=config)
    wanted = spread_logits(PeftModel.from_pretrained(base, str(adapter)))
    torch.testing.assert_close(spread_logits(loaded), wanted, rtol=1e-5, atol=1e-4)
    assert (wanted - unscaled).abs().max() > 0.1
    # And the way for PEFT alone that the docstring names.
    assert AutoConfig.from_pretrained(adapter / "base_config.json").rope_parameters == ROPES[kind]
    assert model_window(str(tiny_model_dir)) == 2048, "the base model stays as it is"


def test_base_config_names_defaults_and_no_path(adapter: Path, tiny_model_dir: Path) -> None:
    """2048 is LlamaConfig's own default, which transformers leaves out of the files that it writes."""
    config = AutoConfig.from_pretrained(tiny_model_dir)
    config._attn_implementation = "eager"
    write_base_config(adapter, config)
    text = (adapter / "base_config.json").read_text()
    assert '"max_position_embeddings": 2048' in text
    assert str(tiny_model_dir) not in text
    assert "eager" not in text


def test_the_trainer_gives_its_own_config(tiny_model_dir: Path) -> None:
    config = scaled(tiny_model_dir, "yarn")
    model = load_model(str(tiny_model_dir), config=config, dtype="bfloat16")
    assert model.config.rope_parameters == ROPES["yarn"]
    assert model.dtype == torch.bfloat16
    # 80,000 positions times a frequency in bfloat16 would be off by whole turns.
    assert {buffer.dtype for name, buffer in model.named_buffers() if "inv_freq" in name} == {torch.float32}


def test_refuses_what_is_no_adapter_or_damaged(adapter: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    for call in (check_adapter, trained_rope):
        with pytest.raises(UserError, match="holds no adapter"):
            call(tmp_path)
    for refused in (load_model, load_config):
        with pytest.raises(UserError, match="holds no adapter"):
            refused(str(tiny_model_dir), adapter=tmp_path)
    (adapter / "base_config.json").write_text("{")
    with pytest.raises(UserError, match=r"base_config\.json: cannot load the base model's config"):
        model_window(str(tiny_model_dir), adapter)


@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_vllm_gets_the_rope_of_the_adapter(
    kind: str, adapter: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, Any] = {}

    def start(**options: Any) -> Any:
        started.update(options)
        return SimpleNamespace(model_config=SimpleNamespace(max_model_len=options["max_model_len"] or 1))

    modules = {
        "vllm": SimpleNamespace(LLM=start, __version__="0"),
        "vllm.platforms": SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: False)),
        "vllm.lora": ModuleType("vllm.lora"),
        "vllm.lora.request": SimpleNamespace(LoRARequest=lambda *_: None),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    VllmEngine(str(tiny_model_dir), EngineSettings(), adapter=adapter)
    assert not started["hf_overrides"]
    assert started["max_model_len"] is None
    write_base_config(adapter, scaled(tiny_model_dir, kind))
    VllmEngine(str(tiny_model_dir), EngineSettings(), adapter=adapter)
    assert started["hf_overrides"] == {"rope_parameters": ROPES[kind], "max_position_embeddings": WINDOW}
    assert started["max_model_len"] == WINDOW
    VllmEngine(str(tiny_model_dir), EngineSettings(max_model_len=100), adapter=adapter)
    assert started["max_model_len"] == 100


def test_the_rope_of_an_adapter_lies_where_vllm_reads_it() -> None:
    """vLLM sets what it is told on the whole config, and reads the text decoder's."""
    rope = {"rope_parameters": ROPES["yarn"], "max_position_embeddings": WINDOW}
    assert in_text_config(make_model(269).config, rope) == rope
    for config in (Gemma3Config(), Qwen2_5_VLConfig()):
        told = in_text_config(config, rope)
        assert told == {"text_config": rope}
        for name, values in told.items():
            getattr(config, name).update(values)
        assert config.get_text_config().max_position_embeddings == WINDOW
    assert in_text_config(Qwen2_5OmniConfig(), rope) == {"thinker_config": {"text_config": rope}}


@pytest.mark.vllm  # which installs mistral_common
def test_a_tokenizer_of_mistral_s_own_format_beside_the_usual_one_is_not_taken(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With mistral_common transformers would take tekken.json, which has no chat template."""
    pytest.importorskip("mistral_common")
    folder = tmp_path / "mistral"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mistral"}))
    (folder / "tekken.json").write_text("{}")
    monkeypatch.setattr("transformers.integrations.mistral.tokenizer.resolve_mistral_format", pytest.fail)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.chat_template
    assert tokenizer("the inn").input_ids == load_tokenizer(str(tiny_model_dir))("the inn").input_ids


# Weights as the model cards give them, in billions.
KNOWN = {
    "meta-llama/Meta-Llama-3-8B-Instruct": (8.030, 8192),
    "meta-llama/Llama-3.1-8B-Instruct": (8.030, 131072),
    "namespace-Pt/Llama-3-8B-Instruct-80K-QLoRA-Merged": (8.030, 81920),
    "meta-llama/Llama-2-7b-chat-hf": (6.738, 4096),
    "yaofu/llama-2-7b-80k": (6.738, 81920),
    "mistralai/Mistral-7B-Instruct-v0.2": (7.242, 32768),
    "Qwen/Qwen3-8B": (8.191, 40960),
    "Qwen/Qwen2.5-7B-Instruct": (7.616, 32768),
}


@pytest.mark.parametrize("name", list(KNOWN))
def test_known_shapes_have_the_published_number_of_weights(name: str) -> None:
    config = known_shapes(name)
    assert config is not None
    billions, window = KNOWN[name]
    assert config.max_position_embeddings == window
    layers, config.num_hidden_layers = config.num_hidden_layers, 1  # layers are alike: one is quicker
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    in_layer = sum(p.numel() for p in model.model.layers.parameters())
    total = sum(p.numel() for p in model.parameters()) + (layers - 1) * in_layer
    assert total / 1e9 == pytest.approx(billions, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46_702_792_704),
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),
        ("openai/gpt-oss-20b", 20_914_757_184),
        ("google/gemma-3-27b-it", 27_432_406_640),
    ],
)
def test_known_mixtures_and_models_that_see_have_the_published_number_of_weights(name: str, weights: int) -> None:
    config = known_shapes(name)
    assert config is not None
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(config).num_parameters() == weights


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, and nothing in a cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, value in (("HF_HUB_OFFLINE", True), ("HF_HUB_CACHE", str(tmp_path / "hub"))):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a test must not reach for the network"))


@pytest.mark.usefixtures("offline")
def test_only_plans_may_take_shapes_from_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    name = "mistralai/Mistral-7B-Instruct-v0.2"
    config = load_config(name, shapes_only=True)
    assert (config.hidden_size, config.num_key_value_heads, config.sliding_window) == (4096, 8, None)
    assert "shapes come from the built-in table" in capsys.readouterr().err
    for refused in (load_config, model_window, load_model):
        with pytest.raises(UserError, match="cannot load the model's config"):
            refused(name)  # type: ignore[operator]
    with pytest.raises(UserError, match="cannot load the model:"):
        load_model(name, config=config)
    with pytest.raises(UserError, match="no-such/model: cannot load the model's config"):
        load_config("no-such/model", shapes_only=True)


def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"HF_HUB_OFFLINE": False, "HF_HUB_CACHE": str(tmp_path / "hub"), "ENDPOINT": free_url()}
    for name, value in values.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    logodata.models.loading._reach_hub.cache_clear()
    for load, fault in ((load_config, "config"), (load_tokenizer, "tokenizer"), (model_fingerprint, "config")):
        with pytest.raises(UserError, match=f"org/model: cannot load the (model's )?{fault}: "):
            load("org/model")
    said = capsys.readouterr().err
    assert said.startswith(f"{values['ENDPOINT']} does not answer (")
    assert said.count("\n") == 1
    logodata.models.loading._reach_hub.cache_clear()


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(tiny_model_dir: Path, device: str) -> None:
    with pytest.raises(UserError, match=f"cannot use the device '{device}': "):
        load_model(str(tiny_model_dir), device=device)


def test_the_window_of_a_model_that_also_sees(tmp_path: Path) -> None:
    """Its config nests the part that reads text."""
    config = Gemma3Config()
    config.save_pretrained(tmp_path / "images")
    assert model_window(str(tmp_path / "images")) == config.text_config.max_position_embeddings
    MambaConfig().save_pretrained(tmp_path / "states")
    with pytest.raises(UserError, match="does not give its window"):
        model_window(str(tmp_path / "states"))


def seeing_config() -> Gemma3Config:
    """A model that also sees, small, with full attention in every layer of its text part."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    text = {**sizes, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2, "vocab_size": 300}
    return Gemma3Config(
        text_config={**text, "max_position_embeddings": 512, "layer_types": ["full_attention"] * 2},
        vision_config={**sizes, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14},
    )


def test_a_model_that_also_sees_generates_and_is_traced() -> None:
    config = seeing_config()
    assert limited_attention(config) == []
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert model.config.get_text_config() is not model.config
    prompt = list(range(5, 25))
    request = GenerationRequest("a", tuple(prompt), Sampling(6, ()))
    (result,) = TransformersEngine(model).generate([request])
    ids = torch.tensor([prompt])
    own = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    assert list(result.token_ids) == own[0, len(prompt) :].tolist()
    assert head_grid(config) == (2, 4)
    (trace,) = trace_answers(model, prompt, [result.token_ids])
    assert trace.shape == (6, 2, 4)


def test_the_adapter_of_a_model_that_also_sees_scales_its_text_part(adapter: Path, tmp_path: Path) -> None:
    config = seeing_config()
    config.save_pretrained(tmp_path / "model")
    config.text_config.max_position_embeddings = WINDOW
    write_base_config(adapter, config)
    assert trained_rope(adapter)["max_position_embeddings"] == WINDOW
    for trained, window in ((None, 512), (adapter, WINDOW)):
        found = load_config(str(tmp_path / "model"), adapter=trained)
        assert found.text_config.max_position_embeddings == config_window(found) == window
        assert rope_and_window(found)[1] == window
        assert Session(EvalRecipe(model=str(tmp_path / "model"), adapter=trained)).window == window


def test_an_engine_refuses_before_weights_are_read(tmp_path: Path) -> None:
    RobertaConfig(num_hidden_layers=2, is_decoder=True).save_pretrained(tmp_path)  # and no weights
    for opened in (
        lambda: open_engine(EngineSettings(device="cpu"), str(tmp_path)),
        lambda: Session(EvalRecipe(model=str(tmp_path))).engine,
    ):
        with pytest.raises(UserError, match="generate does not continue a text"):
            opened()


def test_a_config_of_several_text_models_is_one_line() -> None:
    config = LlamaConfig()
    config.text_config, config.generator = LlamaConfig(), LlamaConfig()
    with pytest.raises(UserError, match="holds several text models"):
        text_config(config)


def test_a_table_entry_cannot_be_changed_through_a_config() -> None:
    for _ in range(2):
        config = known_shapes("Qwen/Qwen3-8B")
        assert config is not None
        assert config.rope_parameters["rope_theta"] == 1e6
        config.rope_parameters["rope_theta"] = 1.0


def test_a_folder_is_read_even_for_shapes(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_config(str(tiny_model_dir), shapes_only=True).hidden_size == 64
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "gpu", "narrow", "dtype"),
    [
        ("auto", False, True, "float32"),
        ("auto", True, True, "bfloat16"),
        ("cuda:1", True, True, "bfloat16"),
        ("auto", True, False, "float32"),  # a card from before 2020 only emulates bfloat16
        ("cpu", True, True, "float32"),
    ],
)
def test_an_engine_takes_the_dtype_that_suits_its_device(
    device: str,
    gpu: bool,
    narrow: bool,
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: narrow or including_emulation)
    dtype_for.cache_clear()
    try:
        assert weights_dtype(EngineSettings(device=device)) == dtype
        assert weights_dtype(EngineSettings(device=device)) == dtype
        assert weights_dtype(EngineSettings(device=device, dtype="float16")) == "float16"
    finally:
        dtype_for.cache_clear()
    assert capsys.readouterr().err.count("dtype: bfloat16") == (dtype == "bfloat16")
    server = EngineSettings(kind="chat", base_urls=("http://127.0.0.1:9",))
    assert weights_dtype(server) == "float32"  # wherever it is asked from
