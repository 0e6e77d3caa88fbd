"""Names that other trainers have for what a ``train`` section says, and what they are called here.

TRL's DPOConfig, CPOConfig and SFTConfig with transformers' TrainingArguments; PEFT's LoraConfig; Axolotl;
LLaMA-Factory; OpenRLHF.
The form of the tables is that of :mod:`logodata.common.recipes.foreign`.
"""

from __future__ import annotations

from logodata.common.recipes.foreign import by_name

_ANSWERS = {
    # Learning rate and optimizer
    "optimizer.lr": "learning_rate actor_learning_rate",
    ": there is no reward model and no critic": "critic_*",
    "optimizer.warmup_ratio": "lr_warmup_ratio",
    "optimizer.schedule: cosine, linear or constant, each after the warm-up": "lr_scheduler* cosine_*",
    "optimizer.warmup_steps": "warmup num_warmup_steps lr_warmup_steps",
    "optimizer.min_lr_ratio": "min_lr_rate cosine_min_lr_ratio min_lr lr_scheduler_min_lr",
    "optimizer.betas: [beta1, beta2]": "adam_beta1 adam_beta2",
    "optimizer.betas": "adam_betas",
    "optimizer.eps": "adam_epsilon",
    "optimizer.weight_decay": "l2",
    "optimizer.name: adamw, adamw_8bit, paged_adamw or paged_adamw_8bit": "optim",
    ": the optimizer takes no other arguments than optimizer has": "optim_*",
    "optimizer.max_grad_norm": "gradient_clipping max_norm grad_clip",
    "optimizer.lr: one rate for all trained weights": "loraplus_* embedding_lr*",
    # How much
    "epochs": "num_train_epochs num_epochs n_epochs max_epochs",
    "max_steps": "max_train_steps num_steps",
    "data.max_samples": "max_samples max_train_samples",
    "samples_per_step: samples of a step over all devices; a row at a time, so memory does not depend on it": (
        "per_device_train_batch_size per_device_batch_size per_gpu_train_batch_size gradient_accumulation_steps "
        "micro_batch_size micro_train_batch_size train_batch_size global_batch_size effective_batch_size batch_size "
        "auto_find_batch_size"
    ),
    "data.validation: a folder, or a share of the documents": (
        "eval_dataset val_set_size val_size test_datasets do_eval"
    ),
    "validation.every_steps": "eval_steps eval_strategy evaluation_strategy evals_per_epoch",
    "data.validation: measured in the same rows as training": (
        "per_device_eval_batch_size eval_accumulation_steps eval_batch_size batch_eval_metrics *_full_eval"
    ),
    "checkpoint.command: logoeval measures answers of each checkpoint, beside the training": (
        "num_beams include_for_metrics prediction_loss_only eval* generate_during_eval"
    ),
    ": the loss is the mean over all samples of a step, wherever they are computed": "average_tokens_across_devices",
    # Lengths and rows
    "positions.target_length: nothing is cut to fit; a sample longer than positions.target_length is refused": (
        "max_length max_len prompt_max_len generate_max_len max_seq_length model_max_length sequence_len cutoff_len "
        "max_prompt_length max_completion_length"
    ),
    ": nothing is cut to fit; a sample longer than positions.target_length is refused": (
        "truncation* excess_length_strategy min_sample_len"
    ),
    "row_tokens: samples share a row up to this many tokens; each sees itself alone": (
        "packing* sample_packing* eval_packing eval_sample_packing padding_free multipack_* group_by_length "
        "pad_to_sequence_len"
    ),
    "compile: it pads rows to multiples of 512 tokens; else nothing is padded": "pad_to_multiple_of",
    ": nothing is padded, rows of samples are computed as they are": "pad_token",
    "rope: type and factor": "rope_scaling",
    "rope: type and factor; ntk raises theta": "rope_theta",
    "attention: auto, flash, flex or sdpa; all of them see the whole row": "s2_attention shift_attn",
    "rope.factor": "rope_factor",
    "rope.type": "rope_type",
    # The loss
    "objective.name: logo, simpo, cpo, dpo, ipo, orpo, solopo, longpo or sft": "loss_type pref_loss rl stage loss ipo",
    "objective.name": "objective_name",
    "objective.beta": "pref_beta dpo_beta rl_beta cpo_beta simpo_beta",
    "objective.tau: of objective.name=ipo": "ipo_tau",
    "objective.preference_weight: of objective.name=orpo": "orpo_alpha orpo_beta",
    "objective.gamma": "simpo_gamma",
    "objective.gamma: the margin itself, gamma = ratio x beta": "gamma_beta_ratio",
    "objective.sft_weight": "cpo_alpha pref_ftx rpo_alpha sft_lambda lambda lambda_sft nll_* loss_weights",
    "objective.tokens: response or sequence, of objective.name=sft": (
        "completion_only_loss assistant_only_loss train_on_inputs train_on_prompt mask_history"
    ),
    "router_loss": "aux_loss_coef router_aux_loss_coef output_router_logits",
    ": no loss here has label smoothing": "label_smoothing* dpo_label_smoothing",
    ": no noise is added to embeddings, the shared prompt would differ from separate rows": "neftune_noise_alpha",
    ": DPO's reference is the untrained model, computed once before step 1": (
        "ref_model* ref_offload reference_model sync_ref_model precompute_ref_* f_divergence_type "
        "f_alpha_divergence_coef discopop_tau ld_alpha use_weighting"
    ),
    ": models train in evaluation mode, where dropout does nothing; leave it out": (
        "disable_dropout lora_dropout dropout"
    ),
    # What is trained
    "tuning: lora, qlora or full": "adapter use_peft peft_type peft_method use_lora finetuning_type",
    "lora": "peft peft_config lora_config",
    "tuning: qlora": "qlora load_in_4bit quantization*",
    "tuning: full": "full_finetuning",
    "tuning: qlora computes on weights of 4 bits; there are none of 8": "load_in_8bit",
    "dtype": "bnb_4bit_compute_dtype model_init_kwargs",
    "tuning: qlora is NF4 with double quantisation": "bnb_4bit_* double_quantization use_bnb_nested_quant",
    "lora.rank": "r lora_r lora_rank",
    "lora.alpha": "lora_alpha",
    "lora.target_modules": "lora_target lora_target_modules",
    "lora.target_modules: all-linear": "lora_target_linear",
    "lora.target_parameters": "lora_target_parameters",
    "lora.target_modules: the layers that get an adapter": "exclude_modules",
    "lora.train_embeddings: the token embedding; no other module is trained whole": (
        "modules_to_save lora_modules_to_save additional_target"
    ),
    "lora.train_embeddings: the whole token embedding, or none of it": "trainable_token_indices",
    "lora.train_embeddings: a tied output head stays tied": "ensure_weight_tying",
    ": every layer of lora.target_modules gets the same adapter, as the paper's do": (
        "peft_layers_to_transform layers_to_transform layers_pattern layer_replication rank_pattern alpha_pattern"
    ),
    "tuning: full trains all weights, lora adapters": "unfrozen_parameters freeze_*",
    "lora.use_dora": "peft_use_dora",
    "lora.use_rslora": "peft_use_rslora",
    ": adapters are LoRA without biases, and start as zero": (
        "bias lora_bias fan_in_fan_out lora_fan_in_fan_out pissa* init_lora_weights task_type lora_task_type "
        "inference_mode loftq_config"
    ),
    "lora.init_adapter": "lora_model_dir adapter_name_or_path",
    # The model
    "model": "base_model base_model_name_or_path model_name model_name_or_path model_id model_path pretrained*",
    "model: its own tokenizer is taken": "tokenizer* processing_class eos_token",
    "model: its own tokenizer is taken, no token is added": "special_tokens",
    "model: give the folder of a downloaded revision": "model_revision revision*",
    "model: its config says what it is": "model_type",
    ": code that comes with a model is never run": "trust_remote_code",
    ": no keys and values are kept while training": "use_cache",
    # The data
    "data.path: a folder that logodata build wrote, or pairs of your own": (
        "dataset datasets dataset_name dataset_path dataset_dir dataset_mixer dataset_prepared_path data_path data_dir "
        "train_file train_dataset"
    ),
    "data.pairs.columns: as in data.pairs.columns.chosen=NAME": (
        "input_key output_key prompt_key chosen_key rejected_key"
    ),
    "data.path: a folder that logodata build wrote, or pairs of your own, with all it needs": "dataset_*",
    ": every step is a line of RUN/metrics.jsonl": (
        "compute_accuracy logging_dir logging* log_* include_num_input_tokens_seen"
    ),
    "data.pairs.chat_template: for pairs of your own; the data of a build hold token ids": "chat_template* template",
    "data.pairs.prompt: message applies the chat template to a prompt of one text; messages get it always": (
        "apply_chat_template"
    ),
    ": the data are in memory before the first step": (
        "remove_unused_columns label_names dataloader_* preprocessing_num_workers overwrite_cache length_column_name"
    ),
    "seed: decides the order of samples in each epoch": "train_sampling_strategy shuffle* data_seed",
    "seed: a run on CPU repeats bit for bit": "full_determinism",
    # Numbers, memory, speed
    "dtype: bfloat16 or float32": "bf16 bfloat16 torch_dtype precision",
    "dtype: bfloat16; trained weights and optimizer state are float32 always": "mixed_precision",
    "dtype: bfloat16 or float32; float16 is not trained in": "fp16 float16",
    ": matrix products of float32 stay float32, as torch has them by default": "tf32",
    "recompute: offloaded keeps the inputs of layers in host memory": (
        "activation_offload* activation_cpu_offload* activations_offload* offload_activations cpu_offload_activations "
        "activation_checkpoint_offload* checkpoint_cpu_offload cpu_checkpointing cpu_offload"
    ),
    "recompute: auto, none, selective, full, tiled or offloaded": (
        "gradient_checkpointing* activation_* use_reentrant use_gradient_checkpointing"
    ),
    "recompute: tiled runs MLPs over tiles of tokens": "tiled_mlp* use_tiled_mlp tiled_compute* mlp_chunk* chunk_mlp",
    "attention: auto, flash, flex or sdpa": "attn_implementation xformers_attention booster",
    "attention: flash": "flash_attention* flash_attn* use_flash_attention*",
    "attention: sdpa": "sdp_attention sdpa_attention",
    "attention: flex": "flex_attention",
    "compile": "torch_compile*",
    "recompute: none": "disable_gradient_checkpointing",
    "compile: no other kernels are put in": "use_unsloth* unsloth*",
    "compile: no other kernels are put in; the output head is computed in chunks always": (
        "enable_liger_kernel use_liger_kernel liger_*"
    ),
    "recompute: what to turn when memory runs out; see logotrain plan": "torch_empty_cache_steps",
    ": logotrain plan estimates the memory": "skip_memory_metrics",
    # Many processes
    "parallel.strategy: shard splits the weights with FSDP2, the processes are torchrun's": (
        "deepspeed fsdp* zero_stage accelerator_config parallelism_config"
    ),
    "parallel.shard_size: processes that hold one copy of the weights together; the copies are replicas": (
        "hsdp* hybrid_shard* fsdp_size fsdp_dp_size dp_shard* dp_replicate* "
        "data_parallel_shard_degree data_parallel_replicate_degree"
    ),
    "parallel.strategy: shard reads each weight straight into its shards": (
        "cpu_ram_efficient_loading fsdp_cpu_ram_efficient_loading low_cpu_mem_usage memory_efficient_load "
        "sync_module_states fsdp_sync_module_states"
    ),
    "parallel.strategy: shard splits the optimizer's state over processes; nothing goes to the host": "adam_offload",
    "parallel.context_size: processes that compute one row together": (
        "ring_attn* ring_head_stride sequence_parallel* context_parallel* ulysses* sp_size cp_size sp_degree "
        "cp_degree dp_cp_size head_parallel* heads_k_stride"
    ),
    "parallel.strategy: replicate holds the model on every process": "ddp*",
    "parallel.strategy: no layer is split; shard splits weights over processes": "tensor_parallel_size",
    ": torchrun's processes take a GPU each; one process takes the first, or the CPU": (
        "local_rank device* use_cpu no_cuda num_gpus n_gpus gpu_memory_limit"
    ),
    # Checkpoints, logs, results
    ": the folder is the option -o DIR": "output_dir output_path output run_name ckpt_path save_path",
    ": a folder that holds another run is refused; give another -o": "overwrite_output_dir",
    ": the same command with the same -o continues": (
        "resume_from_checkpoint auto_resume* load_checkpoint resume ignore_data_skip "
        "restore_callback_states_from_checkpoint"
    ),
    ": SIGTERM and Ctrl-C write a checkpoint always": "enable_jit_checkpoint",
    "checkpoint.every_steps": "save_steps save_strategy saves_per_epoch checkpointing_steps",
    "checkpoint.keep": "save_total_limit",
    "checkpoint.keep: a checkpoint holds adapter and optimizer state; RUN/final the adapter alone": "save_only_model",
    ": weights are safetensors always": "save_safetensors",
    ": checkpoints lie on a file system that all machines see": "save_on_each_node",
    "validation.final: best": "load_best_model_at_end",
    "validation.metric": "metric_for_best_model greater_is_better",
    "validation.patience": "early_stopping*",
    "report_to and project": (
        "wandb* use_wandb mlflow* use_mlflow trackio* tensorboard* use_tensorboard swanlab* use_swanlab"
    ),
    "report_to: tensorboard, trackio, wandb, mlflow or swanlab": "comet* use_comet log_with",
    "profile: steps, the first and the last to trace": "profiler_steps profile_steps*",
    ": logoeval compare --run RUN draws the curve": "plot_loss",
    ": LOGO_PROGRESS=off in the environment shows no progress": "disable_tqdm",
    ": LOGO_PROGRESS=plain in the environment says more": "debug",
    ": logotrain run trains, logoeval measures": "do_train do_predict",
    ": nothing is uploaded; hf upload takes RUN/final": "push_to_hub* hub_*",
}

NAMES = by_name(_ANSWERS)

_VALUES = {
    "dtype": {
        "bfloat16": "bf16 torch.bfloat16",
        "float32": "fp32 float torch.float32",
        "bfloat16 or float32; float16 is not trained in": "fp16 float16 half",
        "left out: bfloat16 on a GPU, float32 on a CPU": "auto",
    },
    "optimizer": {
        "optimizer.name, and optimizer.lr and its other fields": (
            "adamw adamw_torch adamw_torch_fused adamw_hf adamw_8bit adamw_bnb_8bit paged_adamw_8bit"
        ),
    },
    "optimizer.name": {
        "adamw": "adamw_torch adamw_torch_fused adamw_hf",
        "adamw_8bit": "adamw_bnb_8bit",
        "paged_adamw": "paged_adamw_32bit",
    },
    "max_steps": {"null: all epochs": "-1"},
    "data.max_samples": {"null: all": "-1"},
    "checkpoint.keep": {"null: all": "-1 0"},
    "objective.name": {
        "dpo": "sigmoid",
        ": dpo is its neighbour": "hinge",
        ": the data are pairs, dpo takes them": "kto",
    },
    "tuning": {"full": "none full_finetuning", "lora": "peft dora", "qlora": "qdora"},
    "attention": {
        "flash": "flash_attention_2 flash_attention_3 flash_attn fa2",
        "flex": "flex_attention",
        "sdpa": "eager",
    },
    "recompute": {"full": "True", "none": "False", "offloaded": "unsloth offload"},
    "optimizer.schedule": {"constant": "constant_with_warmup", "cosine, without restarts": "cosine_with_restarts"},
    "parallel.strategy": {
        "shard": "fsdp fsdp2 zero3 deepspeed full_shard",
        "replicate": "ddp",
        "shard, with parallel.shard_size": "hsdp hybrid_shard",
    },
    "parallel.shard_size": {"null: all processes": "-1"},
    "rope.type": {"ntk, of a fixed factor: a prompt is shared, whatever the length of the row": "dynamic"},
}

VALUES = {field: by_name(answers) for field, answers in _VALUES.items()}
