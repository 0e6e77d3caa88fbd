"""Names that other trainers have for what a ``train`` section says, and what they are called here.

TRL's DPOConfig, CPOConfig and SFTConfig with transformers' TrainingArguments; PEFT's LoraConfig; Axolotl;
LLaMA-Factory; OpenRLHF.
The form of the tables is that of :mod:`logodata.common.recipes.foreign`.
"""

from __future__ import annotations

_ROWS = "samples_per_step: samples of a step over all devices; a row at a time, so memory does not depend on it"


_WHOLE = ": nothing is cut to fit; a sample longer than positions.target_length is refused"


_LOG = ": every step is a line of RUN/metrics.jsonl"


_NO_REPORTS = ": nothing is sent anywhere; every step is a line of RUN/metrics.jsonl"


_FSDP = "parallel.strategy: shard splits the weights with FSDP2, the processes are torchrun's"


_NO_EVALUATION = "checkpoint.command: logoeval measures each checkpoint, beside the training"


_NO_DEVICES = ": torchrun's processes take a GPU each; one process takes the first, or the CPU"


_CONTINUES = ": the same command with the same -o continues"


_OUTPUT = ": the folder is the option -o DIR"


_DATA = "data.path: a folder that logodata build wrote"


_TEMPLATE = ": the data hold token ids; a chat template is the build's, chat_template=FILE of logodata build"


_NO_DROPOUT = "lora.dropout: must stay 0, the prompt's states are shared by all responses"


_PACKING = "row_tokens: samples share a row up to this many tokens; each sees itself alone"


_LOADER = ": the data are in memory before the first step"


_PUSH = ": nothing is uploaded; hf upload takes RUN/final"


_NO_SMOOTHING = ": no loss here has label smoothing"


_NO_CODE = ": code that comes with a model is never run"


_FULL_ONLY = ": every layer of lora.target_modules gets the same adapter, as the paper's do"


_PLAIN_LORA = ": adapters are plain LoRA, scaled by lora.alpha / lora.rank"


_REFERENCE = ": DPO's reference is the untrained model, computed once before step 1"


_SHUFFLED = "seed: decides the order of samples in each epoch"


NAMES = {
    # Learning rate and optimizer
    "learning_rate": "optimizer.lr",
    "actor_learning_rate": "optimizer.lr",
    "critic_*": ": there is no reward model and no critic",
    "lr_warmup_ratio": "optimizer.warmup_ratio",
    "lr_scheduler*": "optimizer.schedule: cosine after the warm-up",
    "cosine_*": "optimizer.schedule: cosine to zero",
    "warmup_steps": "optimizer.warmup_ratio: a share of the steps",
    "warmup": "optimizer.warmup_ratio: a share of the steps",
    "adam_beta1": "optimizer.betas: [beta1, beta2]",
    "adam_beta2": "optimizer.betas: [beta1, beta2]",
    "adam_betas": "optimizer.betas",
    "adam_epsilon": "optimizer.eps",
    "l2": "optimizer.weight_decay",
    "optim": ": the optimizer is AdamW, its state float32",
    "optim_*": ": the optimizer is AdamW, its state float32",
    "gradient_clipping": "optimizer.max_grad_norm",
    "max_norm": "optimizer.max_grad_norm",
    "grad_clip": "optimizer.max_grad_norm",
    "loraplus_*": "optimizer.lr: one rate for all trained weights",
    "embedding_lr*": "optimizer.lr: one rate for all trained weights",
    # How much
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "n_epochs": "epochs",
    "max_epochs": "epochs",
    "max_train_steps": "max_steps",
    "num_steps": "max_steps",
    "max_samples": "data.max_samples",
    "per_device_train_batch_size": _ROWS,
    "per_device_batch_size": _ROWS,
    "per_gpu_train_batch_size": _ROWS,
    "gradient_accumulation_steps": _ROWS,
    "micro_batch_size": _ROWS,
    "micro_train_batch_size": _ROWS,
    "train_batch_size": _ROWS,
    "global_batch_size": _ROWS,
    "effective_batch_size": _ROWS,
    "batch_size": _ROWS,
    "auto_find_batch_size": _ROWS,
    "per_device_eval_batch_size": _NO_EVALUATION,
    "average_tokens_across_devices": ": the loss is the mean over all samples of a step, wherever they are computed",
    # Lengths and rows
    "max_length": f"positions.target_length{_WHOLE}",
    "max_len": f"positions.target_length{_WHOLE}",
    "prompt_max_len": f"positions.target_length{_WHOLE}",
    "generate_max_len": f"positions.target_length{_WHOLE}",
    "max_seq_length": f"positions.target_length{_WHOLE}",
    "model_max_length": f"positions.target_length{_WHOLE}",
    "sequence_len": f"positions.target_length{_WHOLE}",
    "cutoff_len": f"positions.target_length{_WHOLE}",
    "max_prompt_length": f"positions.target_length{_WHOLE}",
    "max_completion_length": f"positions.target_length{_WHOLE}",
    "truncation*": _WHOLE,
    "excess_length_strategy": _WHOLE,
    "min_sample_len": _WHOLE,
    "packing*": _PACKING,
    "sample_packing*": _PACKING,
    "eval_packing": _PACKING,
    "eval_sample_packing": _PACKING,
    "padding_free": _PACKING,
    "multipack_*": _PACKING,
    "group_by_length": _PACKING,
    "pad_to_sequence_len": _PACKING,
    "pad_to_multiple_of": "compile: it pads rows to multiples of 512 tokens; else nothing is padded",
    "pad_token": ": nothing is padded, rows of samples are computed as they are",
    "rope_scaling": "rope: type and factor",
    "rope_theta": "rope: type and factor; ntk raises theta",
    "s2_attention": "attention: auto, flash, flex or sdpa; all of them see the whole row",
    "shift_attn": "attention: auto, flash, flex or sdpa; all of them see the whole row",
    "rope_factor": "rope.factor",
    "rope_type": "rope.type",
    # The loss
    "loss_type": "objective.name: logo, simpo, cpo, dpo or sft",
    "pref_loss": "objective.name: logo, simpo, cpo, dpo or sft",
    "rl": "objective.name: logo, simpo, cpo, dpo or sft",
    "stage": "objective.name: logo, simpo, cpo, dpo or sft",
    "loss": "objective.name: logo, simpo, cpo, dpo or sft",
    "objective_name": "objective.name",
    "pref_beta": "objective.beta",
    "dpo_beta": "objective.beta",
    "rl_beta": "objective.beta",
    "cpo_beta": "objective.beta",
    "simpo_beta": "objective.beta",
    "simpo_gamma": "objective.gamma",
    "gamma_beta_ratio": "objective.gamma: the margin itself, gamma = ratio x beta",
    "cpo_alpha": "objective.sft_weight",
    "pref_ftx": "objective.sft_weight",
    "rpo_alpha": "objective.sft_weight",
    "sft_lambda": "objective.sft_weight",
    "lambda": "objective.sft_weight",
    "lambda_sft": "objective.sft_weight",
    "nll_*": "objective.sft_weight",
    "loss_weights": "objective.sft_weight",
    "completion_only_loss": "objective.tokens: response or sequence, of objective.name=sft",
    "assistant_only_loss": "objective.tokens: response or sequence, of objective.name=sft",
    "train_on_inputs": "objective.tokens: response or sequence, of objective.name=sft",
    "train_on_prompt": "objective.tokens: response or sequence, of objective.name=sft",
    "ipo": "objective.name: logo, simpo, cpo, dpo or sft",
    "mask_history": "objective.tokens: response or sequence, of objective.name=sft",
    "aux_loss_coef": ": mixtures of experts are not trained with their router's loss",
    "label_smoothing*": _NO_SMOOTHING,
    "dpo_label_smoothing": _NO_SMOOTHING,
    "neftune_noise_alpha": ": no noise is added to embeddings, the shared prompt would differ from separate rows",
    "ref_model*": _REFERENCE,
    "ref_offload": _REFERENCE,
    "reference_model": _REFERENCE,
    "sync_ref_model": _REFERENCE,
    "precompute_ref_*": _REFERENCE,
    "f_divergence_type": _REFERENCE,
    "f_alpha_divergence_coef": _REFERENCE,
    "discopop_tau": _REFERENCE,
    "ld_alpha": _REFERENCE,
    "use_weighting": _REFERENCE,
    "router_aux_loss_coef": ": mixtures of experts are not trained with their router's loss",
    "disable_dropout": ": the model is trained without dropout",
    # What is trained
    "adapter": "tuning: lora, qlora or full",
    "peft": "lora",
    "peft_config": "lora",
    "lora_config": "lora",
    "use_peft": "tuning: lora, qlora or full",
    "peft_type": "tuning: lora, qlora or full",
    "peft_method": "tuning: lora, qlora or full",
    "use_lora": "tuning: lora, qlora or full",
    "qlora": "tuning: qlora",
    "full_finetuning": "tuning: full",
    "finetuning_type": "tuning: lora, qlora or full",
    "load_in_4bit": "tuning: qlora",
    "load_in_8bit": "tuning: qlora computes on weights of 4 bits; there are none of 8",
    "quantization*": "tuning: qlora",
    "bnb_4bit_compute_dtype": "dtype",
    "bnb_4bit_*": "tuning: qlora is NF4 with double quantisation",
    "double_quantization": "tuning: qlora is NF4 with double quantisation",
    "use_bnb_nested_quant": "tuning: qlora is NF4 with double quantisation",
    "r": "lora.rank",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": _NO_DROPOUT,
    "lora_target": "lora.target_modules",
    "lora_target_modules": "lora.target_modules",
    "lora_target_linear": "lora.target_modules: all-linear",
    "target_parameters": "lora.target_modules: names of linear layers",
    "lora_target_parameters": "lora.target_modules: names of linear layers",
    "exclude_modules": "lora.target_modules: the layers that get an adapter",
    "modules_to_save": "lora.train_embeddings: the token embedding; no other module is trained whole",
    "lora_modules_to_save": "lora.train_embeddings: the token embedding; no other module is trained whole",
    "additional_target": "lora.train_embeddings: the token embedding; no other module is trained whole",
    "trainable_token_indices": "lora.train_embeddings: the whole token embedding, or none of it",
    "ensure_weight_tying": "lora.train_embeddings: a tied output head stays tied",
    "peft_layers_to_transform": _FULL_ONLY,
    "layers_to_transform": _FULL_ONLY,
    "layers_pattern": _FULL_ONLY,
    "layer_replication": _FULL_ONLY,
    "rank_pattern": _FULL_ONLY,
    "alpha_pattern": _FULL_ONLY,
    "unfrozen_parameters": "tuning: full trains all weights, lora adapters",
    "freeze_*": "tuning: full trains all weights, lora adapters",
    "bias": _PLAIN_LORA,
    "lora_bias": _PLAIN_LORA,
    "fan_in_fan_out": _PLAIN_LORA,
    "lora_fan_in_fan_out": _PLAIN_LORA,
    "pissa*": _PLAIN_LORA,
    "lora_model_dir": ": training starts from fresh adapters; merge an adapter first (logotrain merge)",
    "init_lora_weights": _PLAIN_LORA,
    "use_dora": _PLAIN_LORA,
    "peft_use_dora": _PLAIN_LORA,
    "use_rslora": _PLAIN_LORA,
    "peft_use_rslora": _PLAIN_LORA,
    "task_type": _PLAIN_LORA,
    "lora_task_type": _PLAIN_LORA,
    "inference_mode": _PLAIN_LORA,
    "loftq_config": _PLAIN_LORA,
    # The model
    "base_model": "model",
    "base_model_name_or_path": "model",
    "model_name": "model",
    "model_name_or_path": "model",
    "model_id": "model",
    "model_path": "model",
    "pretrained*": "model",
    "tokenizer*": "model: its own tokenizer is taken",
    "processing_class": "model: its own tokenizer is taken",
    "eos_token": "model: its own tokenizer is taken",
    "special_tokens": "model: its own tokenizer is taken, no token is added",
    "model_revision": "model: give the folder of a downloaded revision",
    "revision*": "model: give the folder of a downloaded revision",
    "model_init_kwargs": "dtype",
    "model_type": "model: its config says what it is",
    "trust_remote_code": _NO_CODE,
    "use_cache": ": no keys and values are kept while training",
    # The data
    "dataset": _DATA,
    "datasets": _DATA,
    "dataset_name": _DATA,
    "dataset_path": _DATA,
    "dataset_dir": _DATA,
    "dataset_mixer": _DATA,
    "dataset_prepared_path": _DATA,
    "data_path": _DATA,
    "data_dir": _DATA,
    "train_file": _DATA,
    "train_dataset": _DATA,
    "dataset_*": "data.path: a folder that logodata build wrote, with all it needs",
    "max_train_samples": "data.max_samples",
    "val_set_size": _NO_EVALUATION,
    "val_size": _NO_EVALUATION,
    "compute_accuracy": _LOG,
    "num_beams": _NO_EVALUATION,
    "test_datasets": _NO_EVALUATION,
    "eval_dataset": _NO_EVALUATION,
    "chat_template*": _TEMPLATE,
    "template": _TEMPLATE,
    "remove_unused_columns": _LOADER,
    "label_names": _LOADER,
    "dataloader_*": _LOADER,
    "preprocessing_num_workers": _LOADER,
    "overwrite_cache": _LOADER,
    "input_key": _DATA,
    "output_key": _DATA,
    "chosen_key": _DATA,
    "rejected_key": _DATA,
    "apply_chat_template": _TEMPLATE,
    "length_column_name": _LOADER,
    "train_sampling_strategy": _SHUFFLED,
    "shuffle*": _SHUFFLED,
    "data_seed": _SHUFFLED,
    "full_determinism": "seed: a run on CPU repeats bit for bit",
    # Numbers, memory, speed
    "bf16": "dtype: bfloat16 or float32",
    "bfloat16": "dtype: bfloat16 or float32",
    "torch_dtype": "dtype: bfloat16 or float32",
    "precision": "dtype: bfloat16 or float32",
    "mixed_precision": "dtype: bfloat16; trained weights and optimizer state are float32 always",
    "fp16": "dtype: bfloat16 or float32; float16 is not trained in",
    "float16": "dtype: bfloat16 or float32; float16 is not trained in",
    "tf32": ": matrix products of float32 stay float32, as torch has them by default",
    "gradient_checkpointing*": "recompute: auto, none, selective or full",
    "activation_*": "recompute: auto, none, selective or full",
    "use_reentrant": "recompute: auto, none, selective or full",
    "use_gradient_checkpointing": "recompute: auto, none, selective or full",
    "attn_implementation": "attention: auto, flash, flex or sdpa",
    "flash_attention*": "attention: flash",
    "flash_attn*": "attention: flash",
    "use_flash_attention*": "attention: flash",
    "xformers_attention": "attention: auto, flash, flex or sdpa",
    "sdp_attention": "attention: sdpa",
    "sdpa_attention": "attention: sdpa",
    "flex_attention": "attention: flex",
    "torch_compile*": "compile",
    "disable_gradient_checkpointing": "recompute: none",
    "use_unsloth*": "compile: no other kernels are put in",
    "enable_liger_kernel": "compile: no other kernels are put in; the output head is computed in chunks always",
    "booster": "attention: auto, flash, flex or sdpa",
    "use_liger_kernel": "compile: no other kernels are put in; the output head is computed in chunks always",
    "liger_*": "compile: no other kernels are put in; the output head is computed in chunks always",
    "unsloth*": "compile: no other kernels are put in",
    "torch_empty_cache_steps": "recompute: what to turn when memory runs out; see logotrain plan",
    "skip_memory_metrics": ": logotrain plan estimates the memory",
    # Many processes
    "deepspeed": _FSDP,
    "fsdp*": _FSDP,
    "zero_stage": _FSDP,
    "adam_offload": "parallel.strategy: shard splits the optimizer's state over processes; nothing goes to the host",
    "ring_attn_size": "parallel.strategy: a row is computed by one process; logotrain plan says what fits",
    "accelerator_config": _FSDP,
    "parallelism_config": _FSDP,
    "dp_shard_size": _FSDP,
    "ddp*": "parallel.strategy: replicate holds the model on every process",
    "tensor_parallel_size": "parallel.strategy: no layer is split; shard splits weights over processes",
    "sequence_parallel*": "parallel.strategy: a row is computed by one process; logotrain plan says what fits",
    "context_parallel*": "parallel.strategy: a row is computed by one process; logotrain plan says what fits",
    "local_rank": _NO_DEVICES,
    "device*": _NO_DEVICES,
    "use_cpu": _NO_DEVICES,
    "no_cuda": _NO_DEVICES,
    "num_gpus": _NO_DEVICES,
    "n_gpus": _NO_DEVICES,
    "gpu_memory_limit": _NO_DEVICES,
    # Checkpoints, logs, results
    "output_dir": _OUTPUT,
    "output_path": _OUTPUT,
    "output": _OUTPUT,
    "overwrite_output_dir": ": a folder that holds another run is refused; give another -o",
    "run_name": _OUTPUT,
    "resume_from_checkpoint": _CONTINUES,
    "auto_resume*": _CONTINUES,
    "load_checkpoint": _CONTINUES,
    "ckpt_path": _OUTPUT,
    "save_path": _OUTPUT,
    "resume": _CONTINUES,
    "ignore_data_skip": _CONTINUES,
    "enable_jit_checkpoint": ": SIGTERM and Ctrl-C write a checkpoint always",
    "save_steps": "checkpoint.every_steps",
    "save_strategy": "checkpoint.every_steps",
    "saves_per_epoch": "checkpoint.every_steps",
    "checkpointing_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep",
    "save_only_model": "checkpoint.keep: a checkpoint holds adapter and optimizer state; RUN/final the adapter alone",
    "save_safetensors": ": weights are safetensors always",
    "save_on_each_node": ": checkpoints lie on a file system that all machines see",
    "load_best_model_at_end": "checkpoint.command: measure each, and take the best of checkpoints/step-N/adapter",
    "metric_for_best_model": "checkpoint.command: measure each, and take the best of checkpoints/step-N/adapter",
    "greater_is_better": "checkpoint.command: measure each, and take the best of checkpoints/step-N/adapter",
    "early_stopping*": "collapse: when a run gives up",
    "restore_callback_states_from_checkpoint": _CONTINUES,
    "report_to": _NO_REPORTS,
    "wandb*": _NO_REPORTS,
    "use_wandb": _NO_REPORTS,
    "mlflow*": _NO_REPORTS,
    "comet*": _NO_REPORTS,
    "trackio*": _NO_REPORTS,
    "tensorboard*": _NO_REPORTS,
    "swanlab*": _NO_REPORTS,
    "project": _NO_REPORTS,
    "logging_dir": _LOG,
    "logging*": _LOG,
    "log_*": _LOG,
    "plot_loss": ": logoeval compare --run RUN draws the curve",
    "disable_tqdm": ": LOGO_PROGRESS=off in the environment shows no progress",
    "include_num_input_tokens_seen": _LOG,
    "include_for_metrics": _NO_EVALUATION,
    "debug": ": LOGO_PROGRESS=plain in the environment says more",
    "do_train": ": logotrain run trains, logoeval measures",
    "do_predict": ": logotrain run trains, logoeval measures",
    "prediction_loss_only": _NO_EVALUATION,
    "do_eval": _NO_EVALUATION,
    "eval*": _NO_EVALUATION,
    "batch_eval_metrics": _NO_EVALUATION,
    "*_full_eval": _NO_EVALUATION,
    "generate_during_eval": _NO_EVALUATION,
    "push_to_hub*": _PUSH,
    "hub_*": _PUSH,
}


VALUES = {
    "dtype": {
        "bf16": "bfloat16",
        "fp32": "float32",
        "float": "float32",
        "torch.bfloat16": "bfloat16",
        "torch.float32": "float32",
        "fp16": "bfloat16 or float32; float16 is not trained in",
        "float16": "bfloat16 or float32; float16 is not trained in",
        "half": "bfloat16 or float32; float16 is not trained in",
        "auto": "left out: bfloat16 on a GPU, float32 on a CPU",
    },
    "optimizer": dict.fromkeys(
        ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"),
        "AdamW always, its state float32; set optimizer.lr and its other fields",
    ),
    "max_steps": {"-1": "null: all epochs"},
    "data.max_samples": {"-1": "null: all"},
    "checkpoint.keep": {"-1": "null: all", "0": "null: all"},
    "objective.name": {
        "sigmoid": "dpo",
        "orpo": ": simpo and cpo are its neighbours without a reference model",
        "ipo": ": dpo is its neighbour",
        "hinge": ": dpo is its neighbour",
        "kto": ": the data are pairs, dpo takes them",
    },
    "tuning": {"none": "full", "peft": "lora", "full_finetuning": "full", "qdora": "qlora", "dora": "lora"},
    "attention": {
        "flash_attention_2": "flash",
        "flash_attention_3": "flash",
        "flash_attn": "flash",
        "fa2": "flash",
        "flex_attention": "flex",
        "eager": "sdpa",
    },
    "recompute": {"True": "full", "False": "none", "unsloth": "full"},
    "optimizer.schedule": {
        "linear": "cosine, the paper's; there is no other",
        "constant": "cosine, the paper's; there is no other",
        "constant_with_warmup": "cosine, the paper's; there is no other",
        "cosine_with_restarts": "cosine, the paper's; there is no other",
    },
    "parallel.strategy": {
        "fsdp": "shard",
        "fsdp2": "shard",
        "zero3": "shard",
        "deepspeed": "shard",
        "ddp": "replicate",
        "full_shard": "shard",
    },
    "rope.type": {"dynamic": "ntk, of a fixed factor: a prompt is shared, whatever the length of the row"},
}
