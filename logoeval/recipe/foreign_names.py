"""Names that other programs have for what an ``eval`` section says (:mod:`logodata.common.recipes.foreign`):
lm-evaluation-harness, vLLM, and needle tests."""

from __future__ import annotations

from logodata.recipe.foreign_names import ENGINE, ENGINE_VALUES

_TASKS = "short.tasks and longbench.tasks: lists of names"
_SHOTS = "short.tasks: an entry may be {name: arc_easy, shots: 5}"
_GREEDY = ": answers are greedy; max_new_tokens of a task bounds them"
_RECORDS = ": every sample is recorded, and a run continues from them"
_DATA = "longbench.data and qa.data and pairs.data: of the task"

NAMES = {
    **ENGINE,
    "tasks": _TASKS,
    "task": _TASKS,
    "datasets": _TASKS,
    "dataset": _DATA,
    "data": _DATA,
    "data_dir": _DATA,
    "dataset_path": _DATA,
    "num_fewshot": _SHOTS,
    "n_shot": _SHOTS,
    "fewshot*": _SHOTS,
    "shots": _SHOTS,
    "model_args": "model and engine: such as engine.dtype=bfloat16 engine.max_model_len=32K",
    "peft": "adapter",
    "lora": "adapter",
    "lora_path": "adapter",
    "adapter_path": "adapter",
    "lora_local_path": "adapter",
    "peft_path": "adapter",
    "max_batch_size": "engine.max_batch_rows and short.batch_size",
    "gen_kwargs": _GREEDY,
    "generation_kwargs": _GREEDY,
    "temperature": _GREEDY,
    "top_p": _GREEDY,
    "top_k": _GREEDY,
    "do_sample": _GREEDY,
    "max_gen_toks": "niah.max_new_tokens and qa.max_new_tokens and pairs.max_new_tokens: of the task",
    "max_tokens": "niah.max_new_tokens and qa.max_new_tokens and pairs.max_new_tokens: of the task",
    "system_instruction": "chat_template: a Jinja file may write one",
    "*use_cache": _RECORDS,
    "cache_requests": _RECORDS,
    "log_samples": _RECORDS,
    "write_out": _RECORDS,
    "resume": _RECORDS,
    "predict_only": _RECORDS,
    "data_parallel_size": ": one process measures one model; others may run beside it, into folders of their own",
    "world_size": ": one process measures one model; others may run beside it, into folders of their own",
    "truncation": "short.truncate and longbench.max_prompt_tokens",
    "add_bos_token": ": the tokenizer and its chat template say",
    "verbosity": ": LOGO_PROGRESS=plain in the environment says more",
    "show_config": ": --dry-run prints the recipe",
    "wandb*": ": nothing is sent anywhere; logoeval compare writes a page",
    "hf_hub_log_args": ": nothing is sent anywhere; logoeval compare writes a page",
    "bootstrap_iters": ": intervals come from a fixed number of resamples, so that runs compare",
    "context_length*": "niah.lengths and ppl.lengths",
    "ctx_len*": "niah.lengths and ppl.lengths",
    "max_seq_lengths": "niah.lengths and ppl.lengths",
    "document_depth*": "niah.depths: of niah.variant=single",
    "depth_percent*": "niah.depths: of niah.variant=single",
    "haystack*": "niah.haystacks",
    "needle*": "niah.variant: multivalue, single or shared_answer",
    "samples_per_length": "niah.num_samples",
    "window_size": "ppl.lengths: with ppl.protocol=sliding",
    "sliding_window": "ppl.protocol: sliding",
    "num_samples": "niah.num_samples and qa.max_samples and pairs.max_samples: of the task",
}

VALUES = ENGINE_VALUES
