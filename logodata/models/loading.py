"""Load models, tokenizers and configs by name (the embedded model, a local folder or a hub name), with or without an
adapter."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from logodata.common.chat_template import TEMPLATE_SETTING, with_variables
from logodata.common.errors import SettingError, UserError, first_line, pass_on
from logodata.common.user_files import MARK, expand_home, read_text
from logodata.common.verbosity import quiet_transformers
from logodata.models.adapters import (
    ADAPTER_FILES,
    BASE_CONFIG,
    check_adapter,
    check_adapter_shapes,
    merge_adapter,
    some,
)
from logodata.models.embedded import EMBEDDING_PACKAGE, check_embedded_model, embedded_model, package_folder
from logodata.models.text_config import config_name, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16", "float16"]

EMBEDDED = "embedded"
"""The name of the model from the package index: SmolLM2-135M-Instruct, Apache-2.0, 8192 positions."""

_COPY = "copy the model again; is it one that writes text?"
_HUB_TIMEOUT_S = 5.0
_MAX_TEMPLATE_BYTES = 2**20


def resolve_model(name: str) -> str:
    """Return what ``from_pretrained`` takes for a value of ``--model``.

    For ``embedded`` it is the folder of the converted model. A folder must hold a ``config.json``. Any other name that
    does not look like a path is a hub name and is returned unchanged.

    Raises:
        UserError: There is no such folder, it holds no model, or it holds an adapter beside the model.
    """
    if name == EMBEDDED:
        return str(embedded_model())
    path = expand_home(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            mend = "give a Hugging Face model folder; an adapter goes to --adapter, or into one by logotrain merge"
            raise UserError("holds no model (no config.json)", where=name, mend=mend)
        if (path / ADAPTER_FILES[0]).is_file():
            raise _with_adapter(name)
        return str(path)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        mend = "give a folder, a hub name such as org/model, or 'embedded'"
        raise UserError("no such model folder", where=name, mend=mend)
    return name


def _with_adapter(name: str) -> UserError:
    return UserError(
        "holds a model and an adapter",
        where=name,
        mend="put the adapter into a folder of its own, and give it with --adapter or merge it (logotrain merge)",
    )


def check_model(name: str) -> None:
    """Refuse what :func:`resolve_model` refuses, without loading anything. The embedded model is not converted for it.

    Raises:
        UserError: There is no such folder, no model in it, or no package of the embedded model.
    """
    if name == EMBEDDED:
        check_embedded_model()
    else:
        resolve_model(name)


def model_folder(name: str) -> Path | None:
    """Return the folder of a model on this machine; None for ``embedded`` and for hub names."""
    path = expand_home(name)
    return path if name != EMBEDDED and path.is_dir() else None


def _reachable(name: str) -> str:
    """Call :func:`resolve_model`. Check whether the hub answers before a hub name is looked up."""
    resolved = resolve_model(name)
    if not Path(resolved).is_dir():
        _reach_hub()
    return resolved


@cache
def _reach_hub() -> None:
    """Use only cached files if the hub does not answer. huggingface_hub would first try each for half a minute."""
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
    """Return the folder or hub name of a sentence-embedding model. ``embedded`` is all-MiniLM-L6-v2 from the package
    index."""
    return name if name != EMBEDDED else str(package_folder(EMBEDDING_PACKAGE) / "model")


def load_tokenizer(
    name: str,
    chat_template: Path | str | None = None,
    *,
    needs_template: bool = True,
    template_args: Mapping[str, object] | None = None,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    ``chat_template`` is a file with a chat template, or its text; by default it is the tokenizer's own.
    ``template_args`` are variables that the template reads; they become a part of it.

    Raises:
        UserError: The tokenizer cannot be loaded, or it has no chat template and none is given. None is ever guessed.
    """
    from transformers import AutoTokenizer

    quiet_transformers()
    with _loading("the tokenizer", name):
        # Where mistral_common is installed, as it is with vLLM, transformers would take its tokenizer, which has no
        # template.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            _reachable(name), trust_remote_code=False, mistral_format=False
        )
    if chat_template is not None:
        given = chat_template
        tokenizer.chat_template = read_template(given) if isinstance(given, Path) else given
    elif isinstance(own := tokenizer.chat_template, dict):
        tokenizer.chat_template = {key: text.lstrip(MARK) for key, text in own.items()}
    elif own:
        tokenizer.chat_template = own.lstrip(MARK)  # from the model's own file, which an editor may have saved
    if needs_template and not tokenizer.chat_template:
        raise SettingError("the tokenizer has no chat template", where=name, setting=TEMPLATE_SETTING)
    if template_args:
        tokenizer.chat_template = with_variables(tokenizer.chat_template, template_args, name)
    return tokenizer


def read_template(path: Path) -> str:
    """Read the chat template in a file.

    Raises:
        UserError: The file cannot be read, is too large, or is not UTF-8.
    """
    return read_text(path, most_bytes=_MAX_TEMPLATE_BYTES, mend="give a Jinja file in UTF-8")


def load_config(name: str, *, adapter: Path | None = None, shapes_only: bool = False) -> PreTrainedConfig:
    """Load the config of a model, with the RoPE and window that ``adapter`` (if any) was trained with.

    With ``shapes_only`` the config serves to count weights, memory and positions, and never meets weights or a
    tokenizer. Only then may a hand-written table (:mod:`logodata.models.known_shapes`) replace a hub that cannot be
    reached.

    Raises:
        UserError: There is no such model or adapter, or the config cannot be read.
    """
    from transformers import AutoConfig

    try:
        with _loading("the model's config", name):
            config: PreTrainedConfig = AutoConfig.from_pretrained(_reachable(name), trust_remote_code=False)
    except UserError as error:
        from logodata.common.console import note
        from logodata.models.known_shapes import known_shapes

        known = known_shapes(name) if shapes_only and isinstance(error.__cause__, OSError) else None
        if known is None:
            raise
        note(f"{name}: its config cannot be read from the hub, shapes come from the built-in table")
        config = known
    if adapter is not None:
        for field, value in trained_rope(adapter).items():
            setattr(text_config(config), field, value)
    return config


def device_named(name: str) -> str:
    """Return the device that a setting names; ``auto`` is CUDA if there is one."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def dtype_for(device: str) -> DType:
    """Return the dtype that suits a device: bfloat16 on a GPU that computes in it, else float32. A note says so where
    it is not float32."""
    import torch

    from logodata.common.console import note

    if not device.startswith("cuda") or not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float32"
    note("dtype: bfloat16, as suits this GPU (engine.dtype=float32, or --dtype, asks for the other)")
    return "bfloat16"


def _emulated(dtype: DType | None) -> bool:
    """Return whether the CPU has no instructions to multiply matrices in a half precision (on x86: AMX)."""
    import torch

    instructions = {"bfloat16": "amx_bf16", "float16": "amx_fp16"}.get(dtype or "")
    return instructions is not None and not torch.cpu.get_capabilities().get(instructions, False)


def load_model(
    name: str,
    *,
    adapter: Path | None = None,
    config: PreTrainedConfig | None = None,
    dtype: DType | None = "float32",
    device: str = "cpu",
    four_bits: bool = False,
) -> PreTrainedModel:
    """Load a model that writes text, for inference, with the adapter (if any) merged into its weights.

    Only safetensors are read (a pickle can run code), and code that comes with a model is not run.

    Args:
        name: The model, as :func:`resolve_model` takes it.
        adapter: The folder of an adapter.
        config: By default the model's own, with the RoPE and window that the adapter was trained with.
        dtype: The dtype of the weights; None takes the model's own. Rotary frequencies stay float32.
        device: The device of the model.
        four_bits: Quantise linear layers while they are read (NF4 with double quantisation, by bitsandbytes). They
            compute in ``dtype``.

    Raises:
        UserError: The model or the adapter cannot be loaded, the adapter belongs to another model, or the device does
            not exist.
    """
    import torch

    from logodata.common.console import note
    from logodata.models.tiny import plain_attention

    quiet_transformers()
    _check_device(device)
    if device == "cpu" and not torch.cuda.is_available() and _emulated(dtype):
        note(
            f"warning: {dtype} may take minutes on this CPU where float32 takes seconds (dtype, engine.dtype, --dtype)"
        )
    config = config or load_config(name, adapter=adapter)
    if adapter is not None:
        check_adapter_shapes(skeleton(config, name), adapter)
    quantization = _four_bits(dtype or "float32") if four_bits else None
    with _loading("the model", name):
        loaded: Any = model_class(config).from_pretrained(
            resolve_model(name),
            output_loading_info=True,
            config=config,
            dtype=getattr(torch, dtype) if dtype else "auto",
            use_safetensors=True,
            trust_remote_code=False,
            quantization_config=quantization,
            attn_implementation=plain_attention(config),
            device_map={"": device} if four_bits else None,  # quantised weights cannot be moved later
        )
    model: PreTrainedModel = loaded[0]
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers attaches it unasked and unchecked
        raise _with_adapter(name)
    if missing := loaded[1]["missing_keys"]:  # transformers would continue with random numbers in their place
        raise UserError(f"cannot load the model: it has no weights for {some(missing)}", where=name, mend=_COPY)
    if adapter is not None:
        model = merge_adapter(model, adapter)
    if not four_bits:
        model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps `to` and loses its type
    return model.eval()


def _check_device(device: str) -> None:
    """Refuse a device that does not exist before weights are read, which takes minutes."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        pass_on(error)
        mend = "give cpu, cuda, cuda:1 or auto"
        raise UserError(f"cannot use the device {device!r}: {first_line(error)}", mend=mend) from error


def empty_model(config: PreTrainedConfig, name: str, **options: Any) -> PreTrainedModel:
    """Return the model that a config describes, with meaningless weights. On torch's device ``meta`` it takes no
    memory. Messages call it ``name``, and ``options`` go to transformers' ``from_config``.

    Raises:
        UserError: The config does not describe a causal language model that transformers knows.
    """
    with _loading("the model", name):
        model: PreTrainedModel = model_class(config).from_config(config, trust_remote_code=False, **options)
    return model


def model_class(config: PreTrainedConfig) -> Any:
    """Return the class of transformers that loads a model to write text.

    It is ``AutoModelForCausalLM``, or for models that transformers knows only as models of images and text, such as
    Qwen2.5-VL, ``AutoModelForImageTextToText``. Such models get text alone here.

    Raises:
        UserError: Neither class loads it, or its text is read by an encoder.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kinds = (
        (AutoModelForCausalLM,) if config.is_encoder_decoder else (AutoModelForCausalLM, AutoModelForImageTextToText)
    )
    found = next((kind for kind in kinds if kind._model_mapping.get(type(config), None) is not None), None)
    if found is None:
        raise UserError(
            f"transformers has no causal language model for a {type(config).__name__}",
            where=config_name(config),
            mend="take a model that writes text, such as Llama or Qwen",
        )
    return found


def skeleton(config: PreTrainedConfig, name: str) -> PreTrainedModel:
    """Return :func:`empty_model` on torch's device ``meta``: names and shapes without values."""
    import torch

    with torch.device("meta"):
        return empty_model(copy.deepcopy(config), name)  # adapters may change it


@contextmanager
def _loading(what: str, name: str) -> Iterator[None]:
    """Turn any error of transformers about files, which strangers write, into a :class:`UserError`."""
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


@contextmanager
def replaced_attention(model: PreTrainedModel, name: str, attention: Callable[..., Any]) -> Iterator[None]:
    """Within the block, let layers attend by ``attention`` (registered with transformers as ``name``), with sdpa's
    masks."""
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
        mend = "pip install 'logo-align[qlora]'"
        raise UserError("bitsandbytes is not installed, which 4-bit weights need", mend=mend)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def trained_rope(adapter: Path) -> dict[str, Any]:
    """Return the RoPE and window that an adapter was trained with, as config fields; empty if :func:`write_base_config`
    wrote none.

    Raises:
        UserError: ``adapter`` is not an adapter, or its ``base_config.json`` is damaged.
    """
    from transformers import AutoConfig

    check_adapter(adapter)
    path = adapter / BASE_CONFIG
    if not path.is_file():
        return {}
    with _loading("the base model's config", str(path)):
        trained = text_config(AutoConfig.from_pretrained(str(path), trust_remote_code=False))
    fields = ("rope_parameters", "max_position_embeddings")
    return {field: getattr(trained, field) for field in fields if hasattr(trained, field)}
