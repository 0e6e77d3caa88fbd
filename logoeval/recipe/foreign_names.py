"""Names that other programs have for what an ``eval`` section says (:mod:`logodata.common.recipes.foreign`):
lm-evaluation-harness, vLLM, and needle tests."""

from __future__ import annotations

from logodata.common.recipes.foreign import by_name
from logodata.recipe.foreign_names import ENGINE, ENGINE_VALUES

NAMES = ENGINE | by_name(
    {
        "short.tasks and longbench.tasks: lists of names": "tasks task datasets",
        "longbench.data and qa.data and pairs.data: of the task": "dataset data data_dir dataset_path",
        "short.tasks: an entry may be {name: arc_easy, shots: 5}": "num_fewshot n_shot fewshot* shots",
        "model and engine: such as engine.dtype=bfloat16 engine.max_model_len=32K": "model_args",
        "adapter": "peft lora lora_path adapter_path lora_local_path peft_path",
        "engine.max_batch_rows and short.batch_size": "max_batch_size",
        ": answers are greedy; max_new_tokens of a task bounds them": (
            "gen_kwargs generation_kwargs temperature top_p top_k do_sample"
        ),
        "niah.max_new_tokens and qa.max_new_tokens and pairs.max_new_tokens: of the task": "max_gen_toks max_tokens",
        "chat_template: a Jinja file may write one": "system_instruction",
        ": every sample is recorded, and a run continues from them": (
            "*use_cache cache_requests log_samples write_out resume predict_only"
        ),
        ": one process measures one model; others may run beside it, into folders of their own": (
            "data_parallel_size world_size"
        ),
        "short.truncate and longbench.max_prompt_tokens": "truncation",
        ": the tokenizer and its chat template say": "add_bos_token",
        ": LOGO_PROGRESS=plain in the environment says more": "verbosity",
        ": --dry-run prints the recipe": "show_config",
        ": nothing is sent anywhere; logoeval compare writes a page": "wandb* hf_hub_log_args",
        ": intervals come from a fixed number of resamples, so that runs compare": "bootstrap_iters",
        "niah.lengths and ruler.lengths and ppl.lengths": "context_length* ctx_len* max_seq_lengths",
        "niah.depths: of niah.variant=single": "document_depth* depth_percent*",
        "niah.haystacks": "haystack*",
        "niah.variant: multivalue, single or shared_answer": "needle*",
        "niah.num_samples": "samples_per_length",
        "ppl.lengths: with ppl.protocol=sliding": "window_size",
        "ppl.protocol: sliding": "sliding_window",
        "niah.num_samples and qa.max_samples and pairs.max_samples: of the task": "num_samples",
    }
)

VALUES = ENGINE_VALUES
