"""Adapters of every kind that PEFT has: equal to unmerged PEFT on a fresh model, or refused in a line."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from logodata.common.errors import UserError
from logodata.models.adapter_fit import check_adapter_fits, check_served_whole
from logodata.models.loading import load_model, load_tokenizer
from tests.conftest import make_model

TARGETS = ["q_proj", "v_proj"]
IDS = torch.arange(3, 40)[None]
VOCABULARY = 269


def lora(**settings: Any) -> Callable[[], Any]:
    return lambda: LoraConfig(**{"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **settings})


def kind(name: str, **settings: Any) -> Callable[[], Any]:
    config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[name]]
    return lambda: config(**{"target_modules": TARGETS, "task_type": "CAUSAL_LM", **settings})


def prompts(name: str, **settings: Any) -> Callable[[], Any]:
    config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[name]]
    return lambda: config(**{"task_type": "CAUSAL_LM", **settings})


TAKEN: dict[str, Callable[[], Any]] = {
    "lora": lora(),
    "dora": lora(use_dora=True),
    "rslora": lora(use_rslora=True),
    "qalora": lora(use_qalora=True, qalora_group_size=16),
    "pissa": lora(init_lora_weights="pissa"),
    "olora": lora(init_lora_weights="olora"),
    "eva": lora(init_lora_weights="eva", eva_config=peft.EvaConfig()),
    "lora bias=all": lora(bias="all"),
    "lora bias=lora_only": lora(bias="lora_only"),
    "lora lora_bias": lora(lora_bias=True),
    "lora all-linear": lora(target_modules="all-linear"),
    "lora regex": lora(target_modules=r".*\.1\.mlp\.up_proj"),
    "lora layers_to_transform": lora(layers_to_transform=[1]),
    "lora rank_pattern": lora(rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 3}),
    "lora target_parameters": lora(target_modules=[], target_parameters=["up_proj.weight"]),
    "lora layer_replication": lora(layer_replication=[(0, 2), (1, 2)]),
    "lora norms": lora(modules_to_save=["input_layernorm", "norm"]),
    "adalora": kind("ADALORA", init_r=4, target_r=2, total_step=10),
    "adamss": kind("ADAMSS"),
    "beft": kind("BEFT"),
    "boft": kind("BOFT", boft_block_size=4),
    "c3a": kind("C3A", block_size=16),
    "deft": kind("DEFT", r=4),
    "delora": kind("DELORA", r=4),
    "fourierft": kind("FOURIERFT", n_frequency=20),
    "frod": kind("FROD"),
    "glora": kind("GLORA", r=4),
    "gralora": kind("GRALORA", r=4),
    "hira": kind("HIRA", r=4),
    "hra": kind("HRA", r=4, apply_GS=True),
    "ia3": kind("IA3", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "ln_tuning": kind("LN_TUNING", target_modules=["input_layernorm", "norm"]),
    "loha": kind("LOHA", r=4),
    "lokr": kind("LOKR", r=2, decompose_both=True, decompose_factor=8),
    "miss": kind("MISS", r=4),
    "miss bat": kind("MISS", r=4, init_weights="bat"),
    "oft": kind("OFT", r=0, oft_block_size=8),
    "osf": kind("OSF"),
    "peanut": kind("PEANUT", r=4),
    "psoft": kind("PSOFT", r=4),
    "pvera": kind("PVERA", r=4),
    "randlora": kind("RANDLORA", r=4),
    "road": kind("ROAD", group_size=16),
    "shira": kind("SHIRA", r=4),
    "supertuning": kind("SUPERTUNING", r=4),
    "tinylora": kind("TINYLORA", r=2),
    "trainable_tokens": prompts("TRAINABLE_TOKENS", token_indices=[3, 5]),
    "unilora": kind("UNILORA", r=4),
    "vblora": kind("VBLORA", r=2, vector_length=8, num_vectors=20),
    "vblora topk": kind("VBLORA", r=2, vector_length=8, num_vectors=20, save_only_topk_weights=True),
    "vera": kind("VERA", r=4),
    "vera projections drawn again": kind("VERA", r=4, save_projection=False),
    "waveft": kind("WAVEFT", n_frequency=20),
}
TIED: dict[str, Callable[[], Any]] = {
    "lora": lora(),
    "lora head": lora(target_modules=["q_proj", "lm_head"]),
    "lora embedding": lora(target_modules=["q_proj", "embed_tokens"]),
    "lora both": lora(target_modules=["embed_tokens", "lm_head"]),
    "lora tied": lora(target_modules=["embed_tokens"], ensure_weight_tying=True),
    "embedding whole": lora(modules_to_save=["embed_tokens"]),
    "head whole": lora(modules_to_save=["lm_head"]),
    "both whole": lora(modules_to_save=["embed_tokens", "lm_head"]),
    "embedding whole, tied": lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "tokens": lora(trainable_token_indices=[3, 5]),
    "tokens of each": lora(trainable_token_indices={"embed_tokens": [3, 5], "lm_head": [7]}),
    "trainable_tokens": TAKEN["trainable_tokens"],
}
"""What touches weights that a tied model has once: the embedding and the output head."""

REFUSED: dict[str, Callable[[], Any]] = {
    "adaption_prompt": prompts("ADAPTION_PROMPT", adapter_len=4, adapter_layers=2),
    "alora": lora(alora_invocation_tokens=[3, 4]),
    "cartridge": prompts("CARTRIDGE", num_virtual_tokens=4),
    "cpt": prompts("CPT", cpt_token_ids=[3, 4], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 1]),
    "lily": kind("LILY", r=4),
    "multitask_prompt_tuning": prompts("MULTITASK_PROMPT_TUNING", num_virtual_tokens=4, num_tasks=2),
    "p_tuning": prompts("P_TUNING", num_virtual_tokens=4, encoder_hidden_size=16),
    "poly": kind("POLY", r=4, n_tasks=2, n_skills=2, n_splits=1),
    "prefix_tuning": prompts("PREFIX_TUNING", num_virtual_tokens=4),
    "prompt_tuning": prompts("PROMPT_TUNING", num_virtual_tokens=4),
    "shadow": kind("SHADOW", r=4),
    "xlora": prompts("XLORA", hidden_size=64, adapters={"one": "nowhere"}),
}
"""What is no change of weights."""


def make(tied: bool = False, **changes: Any) -> LlamaForCausalLM:
    return make_model(VOCABULARY, tie_word_embeddings=tied, attention_bias=True, **changes)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> dict[bool, Path]:
    folders = {tied: tmp_path_factory.mktemp(f"base-{tied}") for tied in (False, True)}
    for tied, folder in folders.items():
        make(tied).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
    return folders


def write(folder: Path, config: Any, model: Any, **options: Any) -> Path:
    """An adapter whose tensors are all drawn anew."""
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config)
        for parameter in adapted.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data += 0.1 * torch.randn_like(parameter)
        adapted.save_pretrained(str(folder), **{"save_embedding_layers": False, **options})
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def unmerged(model: Any, adapter: Path) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits(PeftModel.from_pretrained(model, str(adapter)))


def assert_same_function(found: Any, model: Callable[[], Any], adapter: Path) -> None:
    wanted = unmerged(model(), adapter)
    torch.testing.assert_close(logits(found), wanted, rtol=0, atol=2e-3)  # RandLoRA's; others are below 2e-5
    assert (wanted - logits(model())).abs().max() > 0.05, "the adapter changes something"


def test_every_kind_of_peft_is_here() -> None:
    found = {config().peft_type.value for config in (*TAKEN.values(), *REFUSED.values())}
    assert found == {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}


@pytest.mark.parametrize("name", TAKEN)
def test_a_kind_is_equal_to_unmerged_peft(name: str, bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter", TAKEN[name](), make())
    torch.manual_seed(2)  # nothing may be drawn that is not in the file
    assert_same_function(load_model(str(bases[False]), adapter=adapter), make, adapter)


@pytest.mark.parametrize("name", TIED)
def test_one_of_two_layers_that_share_a_weight_is_adapted(name: str, bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter", TIED[name](), make(tied=True))
    assert_same_function(load_model(str(bases[True]), adapter=adapter), lambda: make(tied=True), adapter)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_change_of_weights_is_refused_before_weights_are_read(
    name: str, bases: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights are read"))
    config = REFUSED[name]()
    if name == "xlora":
        config.save_pretrained(str(tmp_path))
        save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    else:
        write(tmp_path, config, make())
    with pytest.raises(UserError, match=r"does not change the model's weights and cannot be merged") as error:
        load_model(str(bases[False]), adapter=tmp_path)
    assert "\n" not in str(error.value)


def test_a_part_of_the_weights_drawn_at_random_is_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = write(tmp_path, lora(init_lora_weights="pissa_niter_2")(), make())
    with pytest.raises(UserError, match="pissa_niter_2 removes another random part"):
        load_model(str(bases[False]), adapter=adapter)


DAMAGED = [
    *("lora", "dora", "lora lora_bias", "lora bias=all", "lora norms", "lora layer_replication", "adalora", "boft"),
    *("ia3", "loha", "lokr", "ln_tuning", "trainable_tokens", "vblora topk", "vera", "lora target_parameters", "shira"),
]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_with_other_tensors_is_refused(name: str, bases: dict[bool, Path], tmp_path: Path) -> None:
    """Each kind of its tensors missing, under another name, of another shape, empty, or without numbers."""
    adapter = write(tmp_path / "adapter", TAKEN[name](), make())
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)

    def refused(fault: str, changed: dict[str, torch.Tensor]) -> None:
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(UserError, match=fault) as error:
            load_model(str(bases[False]), adapter=adapter)
        assert "\n" not in str(error.value)

    for key in {key.rpartition("layers.")[2].partition(".")[2]: key for key in tensors}.values():
        value, others = tensors[key], {other: value for other, value in tensors.items() if other != key}
        refused("lacks|not present|holds no tensors", others)
        refused("lacks|not present", {**others, f"{key}x": value})
        refused("the adapter does not fit the model", {**others, key: torch.cat([value, value])})
        refused("is empty", {**others, key: value.new_zeros((0, *value.shape[1:]))})
        if value.is_floating_point():
            refused("not finite", {**others, key: torch.full_like(value, torch.inf)})
    stray = "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"
    refused(f"the model has no place for {stray}", {**tensors, stray: torch.ones(4, 64)})
    refused("holds no tensors", {})
    refused("lacks", {key.removeprefix("base_model.model."): value for key, value in tensors.items()})


def test_one_process_shard_of_an_adapter_is_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    """What is saved under ZeRO-3 without gathering."""
    adapter = write(tmp_path, lora()(), make())
    path = adapter / "adapter_model.safetensors"
    save_file({key: value.new_zeros(0) for key, value in load_file(path).items()}, path)
    with pytest.raises(
        UserError, match=r"is empty \(shape \[0\]\) \(save the adapter again, with the weights gathered"
    ):
        load_model(str(bases[False]), adapter=adapter)


def test_weights_of_the_base_in_the_file(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = write(tmp_path / "same", lora()(), make(), save_embedding_layers=True)
    assert "base_model.model.lm_head.weight" in load_file(adapter / "adapter_model.safetensors")
    assert_same_function(load_model(str(bases[False]), adapter=adapter), make, adapter)
    resized = make()
    resized.resize_token_embeddings(VOCABULARY + 3)
    adapter = write(tmp_path / "larger", lora()(), resized, save_embedding_layers=True)
    with pytest.raises(UserError, match=r"embed_tokens\.weight has shape \[272, 64\], the model's \[269, 64\]"):
        load_model(str(bases[False]), adapter=adapter)


def test_pickles_are_not_read(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = write(tmp_path, lora()(), make())
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    load_model(str(bases[False]), adapter=adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors, and adapter_model\.bin is a pickle"):
        load_model(str(bases[False]), adapter=adapter)


def test_an_adapter_beside_the_model_is_refused(bases: dict[bool, Path], tmp_path: Path) -> None:
    """transformers would put it into the model unasked, vLLM would not."""
    folder = tmp_path / "model"
    shutil.copytree(bases[False], folder)
    write(folder, lora()(), make())
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match=r"holds a model and an adapter \(put the adapter into a folder of its own"):
            load(str(folder))


def test_experts(tmp_path: Path) -> None:
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        initializer_range=0.15,
    )

    def mixture() -> MixtralForCausalLM:
        torch.manual_seed(0)
        return MixtralForCausalLM(config)

    mixture().save_pretrained(tmp_path / "base")
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    adapter = write(tmp_path / "adapter", lora(target_modules=[], target_parameters=targets)(), mixture())
    assert_same_function(load_model(str(tmp_path / "base"), adapter=adapter), mixture, adapter)


def test_on_quantised_weights_an_adapter_stays_beside_them(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    make_model(VOCABULARY, **sizes).save_pretrained(tmp_path / "whole")
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    options = {"quantization_config": four, "dtype": torch.float32}
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole", **options).save_pretrained(tmp_path / "base")

    def quantised() -> Any:
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)

    adapter = write(tmp_path / "adapter", lora()(), quantised())
    loaded = load_model(str(tmp_path / "base"), adapter=adapter)
    assert torch.equal(logits(loaded), unmerged(quantised(), adapter))


@pytest.mark.parametrize(
    ("config", "tied", "more"),
    [
        (lora(), True, None),
        (lora(use_rslora=True, layers_to_transform=[1], init_lora_weights="gaussian"), False, None),
        (lora(target_modules=["lm_head"]), False, None),
        (lora(target_modules=["lm_head"]), True, "lm_head.base_layer.weight, which two layers share"),
        (lora(use_dora=True), False, "use_dora"),
        (lora(bias="all"), False, "bias"),
        (lora(rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 3}), False, "alpha_pattern, rank_pattern"),
        (lora(modules_to_save=["embed_tokens"]), False, "modules_to_save"),
        (lora(init_lora_weights="pissa"), False, "init_lora_weights=pissa"),
        (kind("IA3", target_modules=["k_proj"], feedforward_modules=[]), False, "kind IA3"),
    ],
)
def test_vllm_gets_plain_lora_only(
    config: Callable[[], Any], tied: bool, more: str | None, bases: dict[bool, Path], tmp_path: Path
) -> None:
    """vLLM scales all layers alike and leaves out what it does not know, mostly without a word."""
    adapter = write(tmp_path, config(), make(tied))
    if more is None:
        check_served_whole(str(bases[tied]), adapter)
        return
    with pytest.raises(UserError, match=rf"vLLM applies plain LoRA only; this adapter has more: .*{more}"):
        check_served_whole(str(bases[tied]), adapter)
    check_adapter_fits(str(bases[tied]), adapter)


def test_a_config_that_peft_cannot_read(
    bases: dict[bool, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = write(tmp_path, lora()(), make())
    path = adapter / "adapter_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for changes in ({"peft_type": "BONE"}, {"peft_type": None}, {"r": 0}, {"target_modules": ["nothing"]}, {"r": "x"}):
        path.write_text(json.dumps({**content, **changes}), encoding="utf-8")
        with pytest.raises(UserError) as error:
            load_model(str(bases[False]), adapter=adapter)
        assert "\n" not in str(error.value)
    path.write_text(json.dumps({**content, "of_tomorrow": 2, "unused": None}), encoding="utf-8")
    capsys.readouterr()
    load_model(str(bases[False]), adapter=adapter)
    assert "this version of PEFT does not know of_tomorrow in the config" in capsys.readouterr().err
    path.write_text(json.dumps({**content, "r": 8}), encoding="utf-8")
    with pytest.raises(UserError, match=r"lora_A\.weight has shape \[4, 64\], the model's \[8, 64\]"):
        load_model(str(bases[False]), adapter=adapter)
