"""Files of strangers: what could run code must not be read."""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import AdamW
from transformers import LlamaForCausalLM

import logodata
from logodata.common.errors import UserError
from logodata.common.files import seal
from logodata.contexts.embedding import SentenceEmbedder
from logodata.models.adapters import check_adapter
from logodata.models.loading import load_model
from logodata.sources import SourceSettings, read_source
from logotrain.checkpoints import safe_reading, saving
from logotrain.parallel import World
from tests.hostile.conftest import Payload


def _pickle(path: Path, trap: Path) -> Path:
    torch.save({"weight": Payload(trap)}, path)
    return path


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_model_of_pickles_is_refused(tiny_model_dir: Path, tmp_path: Path, trap: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    _pickle(folder / name, trap)
    with pytest.raises(UserError, match="cannot load"):
        load_model(str(folder))
    assert not trap.exists()


def test_an_embedding_model_of_pickles_is_refused(tiny_model_dir: Path, tmp_path: Path, trap: Path) -> None:
    folder = tmp_path / "embedder"
    shutil.copytree(tiny_model_dir, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    _pickle(folder / "pytorch_model.bin", trap)
    with pytest.raises(UserError, match="cannot load the embedding model"):
        SentenceEmbedder(str(folder), 2, "evaluator.embedding_model")
    assert not trap.exists()


def test_an_adapter_of_pickles_is_refused(tmp_path: Path, trap: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    _pickle(tmp_path / "adapter_model.bin", trap)
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors"):
        check_adapter(tmp_path)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["data.pkl", "data.npy", "data.py"])
def test_a_data_set_of_pickles_or_scripts_is_refused(tmp_path: Path, trap: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_bytes(
        f"open({str(trap)!r}, 'w')".encode() if name.endswith(".py") else pickle.dumps([Payload(trap)])
    )
    with pytest.raises(UserError, match="cannot load this data set"):
        read_source(SourceSettings(path=str(folder), format="hub"))
    assert not trap.exists()


Spoil = Callable[[Path, dict[str, Any], Path], None]


def _a_payload_as_table(folder: Path, state: dict[str, Any], trap: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(trap)))


def _a_payload_as_value(folder: Path, state: dict[str, Any], trap: Path) -> None:
    state["optimizer"]["param_groups"][0]["weight_decay"] = Payload(trap)
    shutil.rmtree(folder)
    save(state, checkpoint_id=folder, no_dist=True)


def _data_elsewhere(folder: Path, state: dict[str, Any], trap: Path) -> None:
    table = pickle.loads((folder / ".metadata").read_bytes())
    (name,) = {place.relative_path for place in table.storage_data.values()}
    for place in table.storage_data.values():
        place.relative_path = f"../{name}"
    (folder / name).rename(folder.parent / name)
    (folder / ".metadata").write_bytes(pickle.dumps(table))


def _no_pickle_at_all(folder: Path, state: dict[str, Any], trap: Path) -> None:
    (folder / ".metadata").write_bytes(b"\x80")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_a_payload_as_table, "it names pathlib.Path.write_text"),
        (_a_payload_as_value, "optimizer.param_groups.0.weight_decay is no plain value"),
        (_data_elsewhere, "data in '../"),
        (_no_pickle_at_all, "pickle data was truncated"),
    ],
)
def test_a_checkpoint_with_code_in_it_is_refused(
    tiny_model: LlamaForCausalLM, tmp_path: Path, trap: Path, spoil: Spoil, said: str
) -> None:
    """Whole and unchanged as far as its own ``files.json`` tells: a stranger writes that too."""
    optimizer = AdamW(tiny_model.parameters())
    tiny_model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.backward()
    optimizer.step()
    state = saving._state(tiny_model, optimizer)
    folder, scratch = tmp_path / "checkpoints" / "step-1", tmp_path / "checkpoints" / "scratch"
    save(state, checkpoint_id=scratch, no_dist=True)
    spoil(scratch, state, trap)
    seal(scratch, folder)
    with pytest.raises(UserError) as caught:
        saving.restore(folder.parent, tiny_model, optimizer, World())
    assert f"{folder}: not a checkpoint that can be read safely: " in str(caught.value)
    assert said in str(caught.value)
    assert not trap.exists()
    if spoil in (_a_payload_as_table, _a_payload_as_value):  # so that the test can fail: torch's own reader runs it
        with contextlib.suppress(CheckpointException):
            load(saving._state(tiny_model, optimizer), checkpoint_id=folder, no_dist=True)
        assert trap.exists()


@pytest.mark.parametrize("name", ["files.json", ".metadata", "__0_0.distcp"])
def test_a_checkpoint_that_cannot_be_read_now_is_not_called_damaged(
    tiny_model: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    optimizer = AdamW(tiny_model.parameters())
    folder, scratch = tmp_path / "checkpoints" / "step-1", tmp_path / "checkpoints" / "scratch"
    save(saving._state(tiny_model, optimizer), checkpoint_id=scratch, no_dist=True)
    seal(scratch, folder)
    opened = open

    def lost(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path) == str(folder / name):
            raise OSError(errno.ESTALE, "Stale file handle")
        return opened(path, *arguments, **options)

    monkeypatch.setattr("builtins.open", lost)
    monkeypatch.setattr("io.open", lost)
    if name != "files.json":
        monkeypatch.setattr(saving, "damage", lambda _: "")  # lost after it was found whole
    with pytest.raises(UserError, match=r"cannot read.*: Stale file handle"):
        saving.restore(folder.parent, tiny_model, optimizer, World())
    assert [path.name for path in folder.parent.iterdir()] == ["step-1"]


def _calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """Every call in the three packages, with the dotted name of what is called."""
    for package in ("logodata", "logotrain", "logoeval"):
        for path in sorted((Path(logodata.__file__).parents[1] / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield path, node, ast.unparse(node.func)


def test_nothing_else_that_runs_code_from_files_is_called() -> None:
    """Ray's workers pickle to each other, and a recipe's checkpoint.command is a shell's. A process of ours converts
    documents, and the unpickler is safe."""
    allowed = {
        ("build/ray_coordinator.py", "pickle.loads"),
        ("build/ray_workers.py", "pickle.loads"),
        ("checkpoints/saving.py", "subprocess.Popen"),
        ("converters/process.py", "subprocess.Popen"),
        ("rounds/driver.py", "subprocess.Popen"),
        ("checkpoints/safe_reading.py", "torch.load"),
        ("checkpoints/safe_reading.py", "super().find_class"),
    }
    risky = (
        "pickle.load",
        "torch.load",
        "np.load",
        "numpy.load",
        "joblib.",
        "dill.",
        "marshal.",
        "shelve.",
        "subprocess.",
    )
    words = {"eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "__import__"}
    found = {
        ("/".join(path.parts[-2:]), name)
        for path, _, name in _calls()
        if name.startswith(risky) or name in words or name.endswith((".extractall", ".find_class"))
    }
    assert found == allowed
    safe = [call for path, call, name in _calls() if name == "torch.load"]
    assert all("weights_only=True" in ast.unparse(call) for call in safe)


def test_every_loader_of_models_says_that_it_runs_no_code() -> None:
    """Left out, transformers asks at the keyboard, and takes what it finds there for an answer."""
    loaders = [
        (path, call)
        for path, call, name in _calls()
        if name.startswith(
            ("AutoConfig.from_", "AutoTokenizer.from_", "AutoModel", "model_class(", "SentenceTransformer", "vllm.LLM")
        )
    ]
    assert len(loaders) >= 8
    for path, call in loaders:
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("trust_remote_code") == "False", f"{path}:{call.lineno}"


class Asking:
    """Pickled as ``getattr(kind, name)``."""

    def __init__(self, kind: object, name: str) -> None:
        self.kind, self.name = kind, name

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.kind, self.name)


def test_members_of_enumerations_are_read_and_no_other_attribute() -> None:
    """Python 3.11.0 to 3.11.3 pickle members by name, as Debian's python3 does."""
    member = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT

    def read(kind: object, name: str) -> object:
        return safe_reading._Unpickler(io.BytesIO(pickle.dumps(Asking(kind, name)))).load()

    assert read(_MEM_FORMAT_ENCODING, member.name) is member
    for kind, name in ((_MEM_FORMAT_ENCODING, "__class__"), (_MEM_FORMAT_ENCODING, "mro"), (torch.Size, "numel")):
        with pytest.raises(pickle.UnpicklingError, match="it asks for"):
            read(kind, name)
