"""Model names: the embedded model, a local folder, or a hub name; what they load, with or without an adapter; and
fingerprints that tie results to a model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from logodata.common.errors import UserError, pass_on
from logodata.common.run_dir import read_json, write_atomic
from logodata.embedded_model import (
    EMBEDDING_PACKAGE,
    GGUF_SHA256,
    check_embedded_model,
    embedded_model,
    package_folder,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16", "float16"]

EMBEDDED = "embedded"
"""Name of the model that comes from the package index: SmolLM2-135M-Instruct, Apache-2.0, 8192 positions."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What makes a folder an adapter."""

_COPY = "copy the model again; is it one that writes text?"
_HUB_TIMEOUT_S = 5.0
_MAX_TEMPLATE_BYTES = 2**20

BASE_CONFIG = "base_config.json"
"""File beside an adapter: the base model's config as trained, context extension included."""


def resolve_model(name: str) -> str:
    """Turn what a user typed after ``--model`` into something ``from_pretrained`` takes.

    ``embedded`` gives the converted embedded model; a folder is checked for a ``config.json``; anything else that does
    not look like a path is a hub name and is returned as it is.

    Raises:
        UserError: no such folder, or no model in it.
    """
    if name == EMBEDDED:
        return str(embedded_model())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                "holds no model (no config.json)",
                where=name,
                mend="give a Hugging Face model folder; an adapter goes to --adapter",
            )
        return str(path)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            "no such model folder", where=name, mend="give a folder, a hub name such as org/model, or 'embedded'"
        )
    return name


def check_model(name: str) -> None:
    """What :func:`resolve_model` refuses, without loading anything: the embedded model is not made for it.

    Raises:
        UserError: no such folder, no model in it, or no package of the embedded one.
    """
    if name == EMBEDDED:
        check_embedded_model()
    else:
        resolve_model(name)


def model_folder(name: str) -> Path | None:
    """The folder of a model that is one, on this machine; None for ``embedded`` and for names of the hub."""
    path = Path(name).expanduser()
    return path if name != EMBEDDED and path.is_dir() else None


def _reachable(name: str) -> str:
    """:func:`resolve_model`; before a hub name is looked up, whether the hub answers."""
    resolved = resolve_model(name)
    if not Path(resolved).is_dir():
        _reach_hub()
    return resolved


@cache
def _reach_hub() -> None:
    """Go on with cached files where the hub does not answer: huggingface_hub would try for half a minute for each
    file, and then do the same."""
    import httpx
    from huggingface_hub import constants

    from logodata.common.console import note

    if constants.HF_HUB_OFFLINE:
        return
    try:
        httpx.head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except httpx.HTTPError as error:
        constants.HF_HUB_OFFLINE = True
        note(f"{constants.ENDPOINT} does not answer ({error}): only models that are in the cache can be loaded")


def resolve_embedding_model(name: str) -> str:
    """The same for sentence-embedding models; ``embedded`` is all-MiniLM-L6-v2 from the package index."""
    if name != EMBEDDED:
        return name
    return str(package_folder(EMBEDDING_PACKAGE) / "model")


def load_tokenizer(
    name: str, chat_template: Path | None = None, *, needs_template: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a chat template if ``needs_template``.

    Raises:
        UserError: it cannot be loaded, or it has no chat template and none is given. None is ever guessed.
    """
    from transformers import AutoTokenizer

    quiet_transformers()
    with _loading("the tokenizer", name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(_reachable(name), trust_remote_code=False)
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    if needs_template and not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template", where=name, mend="give one with chat_template=FILE")
    return tokenizer


def _read_template(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise UserError("larger than any chat template", where=str(path), mend="give a Jinja file in UTF-8")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read: {error}", where=str(path), mend="give a Jinja file in UTF-8") from error


def load_config(name: str, *, adapter: Path | None = None, shapes_only: bool = False) -> PreTrainedConfig:
    """The config of a model, with RoPE and window as ``adapter`` (if any) was trained with.

    Args:
        name: as :func:`resolve_model` takes it.
        adapter: folder of an adapter.
        shapes_only: the config serves to count weights, memory and positions and never meets weights or a tokenizer.
            Only then may a hand-written table (:mod:`logodata.known_models`) stand in for a hub that cannot be reached.

    Raises:
        UserError: there is no such model or adapter, or the config cannot be read.
    """
    from transformers import AutoConfig

    try:
        with _loading("the model's config", name):
            config: PreTrainedConfig = AutoConfig.from_pretrained(_reachable(name), trust_remote_code=False)
    except UserError as error:
        from logodata.common.console import note
        from logodata.known_models import known_shapes

        known = known_shapes(name) if shapes_only and isinstance(error.__cause__, OSError) else None
        if known is None:
            raise
        note(f"{name}: its config cannot be read from the hub, shapes come from the built-in table")
        config = known
    if adapter is not None:
        for field, value in trained_rope(adapter).items():
            setattr(config, field, value)
    return config


def load_model(
    name: str,
    *,
    adapter: Path | None = None,
    config: PreTrainedConfig | None = None,
    dtype: DType = "float32",
    device: str = "cpu",
    four_bits: bool = False,
) -> PreTrainedModel:
    """A causal language model for inference, the adapter (if any) merged into its weights.

    Only safetensors are read (a pickle can run code), and code that comes with a model is not run.

    Args:
        name: as :func:`resolve_model` takes it.
        adapter: folder of an adapter.
        config: by default the model's own, with RoPE and window as the adapter was trained with.
        dtype: of the weights; rotary frequencies stay float32.
        device: where the model goes.
        four_bits: quantise linear layers as they are read (NF4 with double quantisation, by bitsandbytes); they compute
            in ``dtype``.

    Raises:
        UserError: the model or the adapter cannot be loaded, the adapter belongs to another model, or there is no such
            device.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from logodata.common.console import note

    quiet_transformers()
    _check_device(device)
    if dtype != "float32" and device == "cpu" and not torch.cuda.is_available():
        note(f"warning: {dtype} on a CPU may take minutes where float32 takes seconds (dtype, engine.dtype, --dtype)")
    if adapter is not None:
        check_adapter(adapter)
    config = config or load_config(name, adapter=adapter)
    quantization = _four_bits(dtype) if four_bits else None
    with _loading("the model", name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            resolve_model(name),
            output_loading_info=True,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            quantization_config=quantization,
            device_map={"": device} if four_bits else None,  # quantised weights cannot be moved later
        )
    model: PreTrainedModel = loaded[0]
    if missing := sorted(loaded[1]["missing_keys"]):
        # transformers would go on with random numbers in their place.
        names = missing[0] + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        raise UserError(f"cannot load the model: it has no weights for {names}", where=name, mend=_COPY)
    if adapter is not None:
        model = attach_adapter(model, adapter).merge_and_unload()
    if not four_bits:
        model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps `to` and loses its type
    return model.eval()


def _check_device(device: str) -> None:
    """Before weights are read, which takes minutes."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        pass_on(error)
        raise UserError(
            f"cannot use the device {device!r}: {str(error).splitlines()[0]}", mend="give cpu, cuda, cuda:1 or auto"
        ) from error


def empty_model(config: PreTrainedConfig, name: str, **options: Any) -> PreTrainedModel:
    """The model that a config describes, with weights of no meaning: on torch's device ``meta`` it takes no memory.

    Args:
        config: as :func:`load_config` gives it.
        name: of the model, for messages.
        options: of transformers' ``from_config``.

    Raises:
        UserError: the config describes no causal language model that transformers knows.
    """
    from transformers import AutoModelForCausalLM

    with _loading("the model", name):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    return model


@contextmanager
def _loading(what: str, name: str) -> Iterator[None]:
    """Whatever transformers says of a folder's files, as one line. Strangers write these files, and each check of them
    has an exception of its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        pass_on(error)
        if "trust_remote_code" in str(error):
            raise UserError(
                f"cannot load {what}: it needs code from its own repository, which is never run",
                where=name,
                mend="take a model that transformers knows by itself",
            ) from error
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        if not reason or not isinstance(error, OSError | ValueError):
            reason = f"{type(error).__name__} {reason}"
        raise UserError(f"cannot load {what}: {reason}", where=name, mend="check its name or folder") from error


def attach_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """Put the layers of a LoRA adapter into the model.

    Raises:
        UserError: it is an adapter of another model, or damaged.
    """
    from peft import PeftModel

    read_adapter_config(adapter)
    try:
        return PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError) as error:
        pass_on(error)
        raise UserError(
            f"the adapter does not fit this model: {str(error).splitlines()[0]}",
            where=str(adapter),
            mend="give the model that it was trained on",
        ) from error
    except Exception as error:  # by its config, which may hold anything
        pass_on(error)
        raise UserError(
            f"cannot load the adapter: {type(error).__name__} {(str(error).splitlines() or [''])[0]}",
            where=str(adapter),
            mend="copy the adapter again",
        ) from error


@contextmanager
def replaced_attention(model: PreTrainedModel, name: str, attention: Callable[..., Any]) -> Iterator[None]:
    """Within the block, layers attend by ``attention`` (registered with transformers as ``name``), on sdpa's masks."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _four_bits(dtype: DType) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "bitsandbytes is not installed, which 4-bit weights need", mend="pip install 'logo-align[qlora]'"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def model_window(name: str, adapter: Path | None = None) -> int:
    """Positions the model was made for, or was extended to when ``adapter`` was trained (``max_position_embeddings``;
    the tokenizer's ``model_max_length`` is not reliable). Of a model of several kinds of input, that of its text part.

    Raises:
        UserError: there is no such model or adapter, or its config says nothing of positions.
    """
    window = getattr(load_config(name, adapter=adapter).get_text_config(), "max_position_embeddings", None)
    if not isinstance(window, int):
        raise UserError(
            "the model's config says nothing of its window (max_position_embeddings)",
            where=name,
            mend="take a model that writes text, or add it to config.json",
        )
    return window


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """``adapter_config.json`` of an adapter.

    Raises:
        UserError: ``folder`` holds none, or its config is damaged.
    """
    check_adapter(folder)
    config = read_json(folder / ADAPTER_FILES[0])
    if not isinstance(config, dict):
        raise UserError("not an adapter's config", where=str(folder / ADAPTER_FILES[0]), mend="copy the adapter again")
    return config


def check_adapter(folder: Path) -> None:
    """Raise a :class:`UserError` unless ``folder`` holds an adapter (config and safetensors)."""
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"holds no adapter (no {missing[0]})",
            where=str(folder),
            mend="give RUN/final of a finished logotrain run",
        )


def write_base_config(folder: Path, config: PreTrainedConfig) -> None:
    """Keep the base model's config, as trained, with the adapter in ``folder``.

    A scaled RoPE is part of what the adapter learned, but not of its weights. :func:`load_model` and the vLLM engine
    apply it. PEFT alone does not: there, load the base model with ``config=AutoConfig.from_pretrained(FILE)``.
    """
    # Also fields that have their default: another model's default could differ.
    content = json.loads(config.to_json_string(use_diff=False))
    content.pop("_name_or_path", None)  # a path of this machine
    write_atomic(folder / BASE_CONFIG, json.dumps(content, indent=2, sort_keys=True) + "\n")


def trained_rope(adapter: Path) -> dict[str, Any]:
    """RoPE and window that an adapter was trained with, as config fields; empty if :func:`write_base_config` left none.

    Raises:
        UserError: ``adapter`` is none, or its ``base_config.json`` is damaged.
    """
    from transformers import AutoConfig

    check_adapter(adapter)
    path = adapter / BASE_CONFIG
    if not path.is_file():
        return {}
    with _loading("the base model's config", str(path)):
        trained = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    fields = ("rope_parameters", "max_position_embeddings")
    return {field: getattr(trained, field) for field in fields if hasattr(trained, field)}


def model_eos_ids(name: str) -> tuple[int, ...]:
    """Ids at which the model's generation config stops; empty where there is none."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(resolve_model(name)).eos_token_id
    except OSError:
        return ()
    return () if found is None else (found,) if isinstance(found, int) else tuple(found)


def length_dependent_rope(config: PreTrainedConfig) -> str | None:
    """The RoPE type, if its frequencies depend on the length of what is read (``dynamic``, ``longrope``), else None.

    Under such a type a token's states change with what follows it in a row or stands beside it in a batch, so shared
    prompts, batches of unequal rows and one-pass perplexity curves would not equal separate runs.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            return str(parameters["rope_type"])
    return None


def limited_attention(config: PreTrainedConfig) -> list[str]:
    """Kinds of the model's layers that do not attend to everything before them, such as ``sliding_attention``."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        kinds.add("sliding_attention")
    return sorted(kinds - {"full_attention"})


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the vocabulary: two tokenizers with the same one give ids that mean the same."""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.sha256(vocabulary.encode("utf-8")).hexdigest()[:16]


@cache
def model_fingerprint(name: str) -> str:
    """What identifies a model's weights in manifests and caches.

    The embedded model: its GGUF's hash. A folder: hash over the names, sizes and headers of its safetensors files and
    its ``config.json`` (a full hash of 100 GB would take minutes). A hub name: the commit, where transformers tells it.
    """
    if name == EMBEDDED:
        return GGUF_SHA256[:16]
    path = Path(resolve_model(name))
    if not path.is_dir():
        commit: Any = getattr(load_config(name), "_commit_hash", None)
        return f"{name}@{commit or 'unknown'}"
    digest = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        with open(file, "rb") as handle:
            # The first megabyte covers the header; the middle and the end tell fine-tuned copies apart.
            for offset in (0, file.stat().st_size // 2, max(file.stat().st_size - 2**20, 0)):
                handle.seek(offset)
                digest.update(handle.read(2**20))
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
    return digest.hexdigest()[:16]


def quiet_transformers() -> None:
    """Keep progress bars and advice of transformers and what it imports out of our output; errors still come."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # PEFT imports bitsandbytes where it is installed, which then asks for a package that nobody needs here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
