"""Names that other programs have for fields of a ``build`` section (:mod:`logodata.common.recipes.foreign`)."""

from __future__ import annotations

from logodata.common.recipes.foreign import by_name

ENGINE = by_name(
    {
        "engine.kind: transformers, vllm or openai": "backend engine_kind",
        "engine.kind: vllm": "use_vllm",
        "engine.tensor_parallel_size": "tp tp_size num_gpus",
        "engine.gpu_memory_utilization": "gpu_memory gpu_memory_fraction mem_fraction_static",
        "engine.max_model_len: prompt and response together, by default the model's window": "max_length max_seq_len*",
        "engine.max_batch_rows: of transformers; vLLM decides itself": "max_num_seqs",
        "engine.max_batch_tokens: of transformers; vLLM decides itself": "max_num_batched_tokens",
        "engine.dtype": "torch_dtype precision",
        "engine.dtype: bfloat16": "bf16",
        "engine.dtype: float16": "fp16",
        "engine.device": "device_map",
        "engine.base_urls": "base_url api_base openai_api_base endpoint host port",
        "engine.api_key_env: the name of the environment variable that holds it": "api_key openai_api_key",
        "engine.served_model": "served_model_name",
        "engine.concurrency": "num_concurrent max_concurrency",
        "engine.requests_per_minute": "rpm",
        "engine.tokens_per_minute": "tpm",
        "engine.timeout_s": "timeout",
        "engine.max_retries": "retries",
        ": vLLM decides; on a CPU it computes eagerly": "enforce_eager",
        ": prefixes are cached always": "enable_prefix_caching",
        ": weights are safetensors always": "load_format",
        ": the engine computes the model as it is, in engine.dtype": (
            "swap_space cpu_offload_gb block_size quantization load_in_4bit load_in_8bit kv_cache_dtype"
        ),
        ": HF_HOME in the environment says where downloads lie": "download_dir cache_dir",
        ": VLLM_LOGGING_LEVEL=INFO in the environment shows more": "disable_log_stats",
        "engine.tensor_parallel_size: layers are not dealt out otherwise": "pipeline_parallel_size",
        ": the engine chooses; all of them compute the same": "attn_implementation flash_attention*",
        ": code that comes with a model is never run": "trust_remote_code",
        "model: its own tokenizer is taken": "tokenizer*",
        "model": "model_name model_name_or_path model_path model_id base_model pretrained",
        "model: give the folder of a downloaded revision": "revision",
        "chat_template": "template chat_template_path",
        "chat_template_args: such as chat_template_args.enable_thinking=false": "enable_thinking thinking",
        "chat_template_args": "chat_template_kwargs template_kwargs",
        "thinking_tokens": "thinking_budget reasoning_budget max_thinking_tokens",
        "thinking_end": "think_end_token",
        "seed": "random_seed",
        ": the folder is the option -o DIR": "output_dir output_path output",
    }
)
"""Names for fields of what runs a model, which all programs that open an engine share."""

ENGINE_VALUES = {
    "engine.dtype": {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"},
    "engine.kind": {"hf": "transformers", "huggingface": "transformers", "openai-compatible": "openai"},
}

NAMES = ENGINE | by_name(
    {
        ": --executor ray --workers N runs engines on many GPUs, --shard I/N on many machines": (
            "data_parallel_size num_workers num_proc"
        ),
        "generation.num_candidates": "n num_return_sequences",
        "generation.num_candidates: with generation.preferred=best_of_n": "best_of",
        "generation.max_new_tokens": "max_tokens max_gen_toks max_completion_tokens",
        "generation.preferred: model is greedy, best_of_n draws": "do_sample",
        ": responses are greedy, or drawn by temperature and top_p alone": "top_k min_p *_penalty",
        ": a response ends where the chat template ends a turn": "stop",
        "engine.max_batch_rows and engine.max_batch_tokens": "batch_size",
        "chunking.chunk_tokens": "chunk_size chunk_length max_chunk_tokens",
        ": chunks do not overlap, they reassemble to the document": "chunk_overlap",
        "contexts.num_chunks: of chunking.chunk_tokens each": "context_length max_context_length",
        "contexts.critical_threshold": "threshold delta",
        "contexts.mixed_ratios: one response a ratio, and one from irrelevant chunks": "num_rejected num_negatives",
        "evaluator.entity_model": "spacy_model",
        "contexts.critical_top": "top_n",
        "evaluator.name: entity, lexical, embedding or fused": "reranker retriever",
        "evaluator.embedding_model": "embedder",
        "source.path": "dataset* data data_path documents input input_path train_file corpus",
        "source.columns: such as {context: passage}": "text_column text_field",
        "source.max_documents and source.max_questions_per_document": "max_samples",
    }
)

QUESTION_NAMES = {
    name: text for name, text in NAMES.items() if not text.startswith(("generation.", "contexts.", "evaluator."))
} | by_name(
    {
        "questions_per_document": "n num_questions",
        "max_new_tokens": "max_tokens max_gen_toks",
        "source.max_documents": "max_samples",
    }
)
"""Names for the fields of ``logodata questions``."""
