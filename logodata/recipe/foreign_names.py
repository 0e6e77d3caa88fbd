"""Names that other programs have for what a ``build`` section says (:mod:`logodata.common.recipes.foreign`): vLLM and
OpenAI's clients, transformers, and tools that cut and search documents."""

from __future__ import annotations

_FULL = ": the engine computes the model as it is, in engine.dtype"


_GREEDY = ": responses are greedy, or drawn by temperature and top_p alone"


_OUTPUT = ": the folder is the option -o DIR"


_NO_CODE = ": code that comes with a model is never run"


_MODEL = "model"


_SOURCE = "source.path"


_WORKERS = ": --executor ray --workers N runs engines on many GPUs, --shard I/N on many machines"


ENGINE = {
    "backend": "engine.kind: transformers, vllm or openai",
    "engine_kind": "engine.kind: transformers, vllm or openai",
    "use_vllm": "engine.kind: vllm",
    "tp": "engine.tensor_parallel_size",
    "tp_size": "engine.tensor_parallel_size",
    "num_gpus": "engine.tensor_parallel_size",
    "gpu_memory": "engine.gpu_memory_utilization",
    "gpu_memory_fraction": "engine.gpu_memory_utilization",
    "mem_fraction_static": "engine.gpu_memory_utilization",
    "max_length": "engine.max_model_len: prompt and response together, by default the model's window",
    "max_seq_len*": "engine.max_model_len: prompt and response together, by default the model's window",
    "max_num_seqs": "engine.max_batch_rows: of transformers; vLLM decides itself",
    "max_num_batched_tokens": "engine.max_batch_tokens: of transformers; vLLM decides itself",
    "torch_dtype": "engine.dtype",
    "precision": "engine.dtype",
    "bf16": "engine.dtype: bfloat16",
    "fp16": "engine.dtype: float16",
    "device_map": "engine.device",
    "base_url": "engine.base_urls",
    "api_base": "engine.base_urls",
    "openai_api_base": "engine.base_urls",
    "endpoint": "engine.base_urls",
    "host": "engine.base_urls",
    "port": "engine.base_urls",
    "api_key": "engine.api_key_env: the name of the environment variable that holds it",
    "openai_api_key": "engine.api_key_env: the name of the environment variable that holds it",
    "served_model_name": "engine.served_model",
    "num_concurrent": "engine.concurrency",
    "max_concurrency": "engine.concurrency",
    "rpm": "engine.requests_per_minute",
    "tpm": "engine.tokens_per_minute",
    "timeout": "engine.timeout_s",
    "retries": "engine.max_retries",
    "enforce_eager": ": vLLM decides; on a CPU it computes eagerly",
    "enable_prefix_caching": ": prefixes are cached always",
    "load_format": ": weights are safetensors always",
    "swap_space": _FULL,
    "cpu_offload_gb": _FULL,
    "block_size": _FULL,
    "download_dir": ": HF_HOME in the environment says where downloads lie",
    "cache_dir": ": HF_HOME in the environment says where downloads lie",
    "disable_log_stats": ": VLLM_LOGGING_LEVEL=INFO in the environment shows more",
    "quantization": _FULL,
    "load_in_4bit": _FULL,
    "load_in_8bit": _FULL,
    "kv_cache_dtype": _FULL,
    "pipeline_parallel_size": "engine.tensor_parallel_size: layers are not dealt out otherwise",
    "attn_implementation": ": the engine chooses; all of them compute the same",
    "flash_attention*": ": the engine chooses; all of them compute the same",
    "trust_remote_code": _NO_CODE,
    "tokenizer*": "model: its own tokenizer is taken",
    "model_name": _MODEL,
    "model_name_or_path": _MODEL,
    "model_path": _MODEL,
    "model_id": _MODEL,
    "base_model": _MODEL,
    "pretrained": _MODEL,
    "revision": "model: give the folder of a downloaded revision",
    "template": "chat_template",
    "chat_template_path": "chat_template",
    "random_seed": "seed",
    "output_dir": _OUTPUT,
    "output_path": _OUTPUT,
    "output": _OUTPUT,
}
"""Of what runs a model; shared by all programs that open an engine."""


ENGINE_VALUES = {
    "engine.dtype": {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"},
    "engine.kind": {"hf": "transformers", "huggingface": "transformers", "openai-compatible": "openai"},
}


NAMES = {
    **ENGINE,
    "data_parallel_size": _WORKERS,
    "num_workers": _WORKERS,
    "num_proc": _WORKERS,
    "n": "generation.num_candidates",
    "num_return_sequences": "generation.num_candidates",
    "best_of": "generation.num_candidates: with generation.preferred=best_of_n",
    "max_tokens": "generation.max_new_tokens",
    "max_gen_toks": "generation.max_new_tokens",
    "max_completion_tokens": "generation.max_new_tokens",
    "do_sample": "generation.preferred: model is greedy, best_of_n draws",
    "top_k": _GREEDY,
    "min_p": _GREEDY,
    "*_penalty": _GREEDY,
    "stop": ": a response ends where the chat template ends a turn",
    "batch_size": "engine.max_batch_rows and engine.max_batch_tokens",
    "chunk_size": "chunking.chunk_tokens",
    "chunk_length": "chunking.chunk_tokens",
    "max_chunk_tokens": "chunking.chunk_tokens",
    "chunk_overlap": ": chunks do not overlap, they reassemble to the document",
    "context_length": "contexts.num_chunks: of chunking.chunk_tokens each",
    "max_context_length": "contexts.num_chunks: of chunking.chunk_tokens each",
    "threshold": "contexts.critical_threshold",
    "delta": "contexts.critical_threshold",
    "num_rejected": "contexts.mixed_ratios: one response a ratio, and one from irrelevant chunks",
    "num_negatives": "contexts.mixed_ratios: one response a ratio, and one from irrelevant chunks",
    "spacy_model": "evaluator.entity_model",
    "top_n": "contexts.critical_top",
    "reranker": "evaluator.name: entity, lexical, embedding or fused",
    "retriever": "evaluator.name: entity, lexical, embedding or fused",
    "embedder": "evaluator.embedding_model",
    "dataset*": _SOURCE,
    "data": _SOURCE,
    "data_path": _SOURCE,
    "documents": _SOURCE,
    "input": _SOURCE,
    "input_path": _SOURCE,
    "train_file": _SOURCE,
    "corpus": _SOURCE,
    "text_column": "source.columns: such as {context: passage}",
    "text_field": "source.columns: such as {context: passage}",
    "max_samples": "source.max_documents and source.max_questions_per_document",
}


QUESTION_NAMES = {
    **{name: text for name, text in NAMES.items() if not text.startswith(("generation.", "contexts.", "evaluator."))},
    "n": "questions_per_document",
    "num_questions": "questions_per_document",
    "max_tokens": "max_new_tokens",
    "max_gen_toks": "max_new_tokens",
    "max_samples": "source.max_documents",
}
"""Of ``logodata questions``."""
