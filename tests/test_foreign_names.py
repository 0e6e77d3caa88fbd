"""Names of other programs: each is answered with fields that exist, and what people type is in the tables."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import pytest

from logodata.common.errors import UserError
from logodata.common.recipes.fields import leaves, places_of
from logodata.common.recipes.foreign import answer, parse_answer
from logodata.common.recipes.reading import RecipeModel, Section, load_recipe
from logodata.questions.settings import QuestionsRecipe
from logodata.recipe.settings import BuildRecipe
from logoeval.recipe.settings import EvalRecipe
from logotrain.recipe.foreign_names import _ANSWERS, NAMES
from logotrain.recipe.settings import TrainRecipe

RECIPES: Mapping[type[RecipeModel], Section] = {
    BuildRecipe: "build",
    QuestionsRecipe: "build",
    TrainRecipe: "train",
    EvalRecipe: "eval",
}
every_recipe = pytest.mark.parametrize("cls", RECIPES, ids=lambda cls: cls.__name__)


def fields(cls: type[RecipeModel]) -> set[str]:
    """Dotted names of all fields and sections."""
    return {".".join(keys[:end]) for keys in leaves(cls) for end in range(1, len(keys) + 1)}


def refusal(cls: type[RecipeModel], *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(
            cls, RECIPES[cls], None, ["model=m", *(["source.path=x"] if "source" in fields(cls) else []), *overrides]
        )
    return str(caught.value)


@every_recipe
def test_each_answer_names_fields_that_exist(cls: type[RecipeModel]) -> None:
    there = fields(cls)
    for name, text in cls.foreign_names.items():
        found = parse_answer(text)
        assert set(found.fields) <= there, name
        assert found.fields or found.remark, name
        assert name == name.lower(), name
        assert name not in there, f"{name} is a field of ours"


def test_no_name_has_two_answers() -> None:
    assert len(NAMES) == sum(len(names.split()) for names in _ANSWERS.values())


@every_recipe
def test_each_value_is_answered_at_a_field_that_exists(cls: type[RecipeModel]) -> None:
    for field, values in cls.foreign_values.items():
        assert field in fields(cls)
        for theirs in values:
            line = refusal(cls, f"{field}={theirs}")
            ours = values[theirs]
            said = f"there is none here: {ours[1:].strip()}" if ours.startswith(":") else f"here it is {ours}"
            assert f"({said})" in line


def settings(program: str) -> set[str]:
    """The names that a program's own classes have for its settings."""
    if program == "peft":
        from peft import LoraConfig

        return {field.name for field in dataclasses.fields(LoraConfig)} - RARE_OF_PEFT
    if program == "lm_eval":
        from lm_eval import simple_evaluate

        return set(inspect.signature(simple_evaluate).parameters) - RARE_OF_LM_EVAL
    import trl
    from trl.experimental.cpo import CPOConfig

    classes: tuple[Any, ...] = (trl.DPOConfig, CPOConfig, trl.SFTConfig, trl.ModelConfig)
    return {field.name for cls in classes for field in dataclasses.fields(cls)} - RARE_OF_TRL


RARE_OF_PEFT = {
    *("alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config", "kasa_config"),
    *("lora_ga_config", "megatron_config", "megatron_core", "monteclora_config", "peft_version", "qalora_group_size"),
    *("runtime_config", "use_bdlora", "use_qalora", "velora_config"),
}
RARE_OF_TRL = {"is_encoder_decoder", "project", "label_names", "alpha"}
RARE_OF_LM_EVAL = {
    *("rewrite_requests_cache", "delete_requests_cache", "samples", "check_integrity", "evaluation_tracker"),
    *("task_manager", "verbosity", "predict_only", "numpy_random_seed", "torch_random_seed", "random_seed"),
    "confirm_run_unsafe_code",
}


@pytest.mark.parametrize(
    ("program", "cls"), [("trl", TrainRecipe), ("peft", TrainRecipe), ("lm_eval", EvalRecipe)], ids=str
)
def test_all_settings_of_other_programs_are_known(program: str, cls: type[RecipeModel]) -> None:
    """As a field of ours, at this place or another, or by the table."""
    unknown = {
        name
        for name in settings(program)
        if name not in cls.model_fields and not places_of(cls, name) and answer(name, cls.foreign_names) is None
    }
    assert not unknown


@pytest.mark.parametrize(
    ("cls", "typed", "said"),
    [
        (TrainRecipe, "learning_rate=1e-4", "unknown key 'learning_rate' (here it is optimizer.lr)"),
        (TrainRecipe, "optimizer.learning_rate=1e-4", "'optimizer.learning_rate' (here it is optimizer.lr)"),
        (TrainRecipe, "LEARNING-RATE=1e-4", "(here it is optimizer.lr)"),
        (TrainRecipe, "lora.r=8", "'lora.r' (here it is lora.rank)"),
        (TrainRecipe, "max_grad_norm=1", "(it stands at optimizer.max_grad_norm)"),
        (TrainRecipe, "wandb_project=x", "(here it is report_to and project)"),
        (TrainRecipe, "beta=3", "(it stands at objective.beta)"),
        (TrainRecipe, "objective.loss_type=ipo", "(here it is objective.name: logo, simpo, cpo, dpo, ipo, "),
        (TrainRecipe, "objective.orpo_alpha=0.1", "(here it is objective.preference_weight: of objective.name=orpo)"),
        (TrainRecipe, "hub_model_id=me/it", "(there is none here: nothing is uploaded"),
        (TrainRecipe, "dtype=bf16", "(here it is bfloat16)"),
        (TrainRecipe, "context_parallel_degree=4", "(here it is parallel.context_size: processes"),
        (
            TrainRecipe,
            "activation_offloading=true",
            "(here it is recompute: offloaded keeps the inputs",
        ),
        (TrainRecipe, "recompute=unsloth", "(here it is offloaded)"),
        (TrainRecipe, "objektive.beta=3", "(did you mean 'objective'?)"),
        (BuildRecipe, "tensor_parallel_size=2", "(it stands at engine.tensor_parallel_size"),
        (BuildRecipe, "max_tokens=64", "(here it is generation.max_new_tokens)"),
        (QuestionsRecipe, "max_tokens=64", "(here it is max_new_tokens)"),
        (EvalRecipe, "num_fewshot=5", "(here it is short.tasks: an entry may be {name: arc_easy, shots: 5})"),
        (EvalRecipe, "gpu_memory_utilization=0.5", "(it stands at engine.gpu_memory_utilization)"),
        (EvalRecipe, "engine.dtype=bf16", "(here it is bfloat16)"),
    ],
)
def test_what_people_type_is_answered(cls: type[RecipeModel], typed: str, said: str) -> None:
    assert said in refusal(cls, typed)


@pytest.mark.parametrize(
    "names",
    [
        "base_model sequence_len micro_batch_size lora_r lora_alpha lora_dropout lora_target_modules "
        "lora_target_linear lora_modules_to_save rl rl_beta sample_packing flash_attention load_in_4bit "
        "load_in_8bit adapter datasets val_set_size wandb_project wandb_entity gradient_accumulation_steps "
        "num_epochs optimizer_name train_on_inputs gradient_checkpointing resume_from_checkpoint xformers_attention "
        "special_tokens dataset_prepared_path saves_per_epoch evals_per_epoch tf32 deepspeed fsdp fsdp_config "
        "pad_to_sequence_len eval_sample_packing unfrozen_parameters activation_offloading tiled_mlp "
        "tiled_mlp_num_shards sequence_parallel_degree context_parallel_size ring_attn_func heads_k_stride",
        "model_name_or_path stage finetuning_type lora_target lora_rank pref_loss pref_beta pref_ftx simpo_gamma "
        "cutoff_len template dataset dataset_dir overwrite_output_dir plot_loss preprocessing_num_workers "
        "quantization_bit rope_scaling flash_attn enable_liger_kernel use_unsloth val_size loraplus_lr_ratio "
        "pissa_init",
        "zero_stage adam_offload actor_learning_rate max_epochs max_len micro_train_batch_size train_batch_size l2 "
        "adam_betas packing_samples ring_attn_size ring_head_stride ulysses_degree sp_size "
        "ckpt_path save_path load_checkpoint lr_warmup_ratio ref_offload",
        "dataset_mixer dataset_mixture dataset_splits evaluation_strategy log_level torch_dtype use_peft hub_model_id",
    ],
    ids=["axolotl", "llama-factory", "openrlhf", "alignment-handbook"],
)
def test_other_trainers_files_are_answered(names: str) -> None:
    for name in set(names.split()) - {"optimizer_name"}:
        assert answer(name, TrainRecipe.foreign_names) or places_of(TrainRecipe, name), name


def test_a_file_of_another_trainer_is_answered_with_our_section(tmp_path: Any) -> None:
    file = tmp_path / "axolotl.yml"
    file.write_text("base_model: org/model\nlearning_rate: 1e-4\n")
    with pytest.raises(UserError) as refused:
        load_recipe(TrainRecipe, "train", file)
    assert "axolotl.yml:2: unknown keys 'base_model', 'learning_rate' (base_model: here it is train.model;" in str(
        refused.value
    )
    assert str(refused.value).endswith("learning_rate: here it is train.optimizer.lr)")
