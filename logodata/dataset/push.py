"""Upload a data set to the hub: ``logodata push``.

Names of this machine are not uploaded. ``manifest.json``, the card and ``rejected.jsonl`` tell where documents, model
and cache were. An upload cannot be taken back, other machines have no use for such a path, and fingerprints say what
the file was. So every path that is absolute or leads up (``../``) is uploaded as its last part, and servers without
their addresses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from logodata.common.console import note
from logodata.common.errors import UserError
from logodata.common.files import read_json, write_json
from logodata.common.json_files import json_objects, strict_dumps
from logodata.common.printable import markdown_cell
from logodata.common.user_files import expand_home
from logodata.contract import AnyManifest, ShardRecord
from logodata.dataset.files import SHARD_FILE
from logodata.dataset.samples import read_manifest, sample_files
from logodata.sources.document_files import SUFFIXES

_CARD = "README.md"
_JSON_FILES = ("manifest.json", "stats.json")
_JSON_LINES = ("rejected.jsonl", "decisions.jsonl")


def push(folder: Path, repository: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload a finished build to a data set repository, and return the address. Earlier data files are removed.

    Args:
        repository: The repository, ``org/name``, which is created if it does not exist.
        private: Whether the repository must be private.
        revision: The branch, which is created if it does not exist.

    Raises:
        UserError: The folder holds no finished build, or a shard of one; nobody is logged in; the hub cannot be reached
            or refuses; or the repository is public and should be private.
    """
    manifest = _check_finished(folder)
    from huggingface_hub import HfApi, errors, get_token

    if repository.count("/") != 1:
        raise UserError(f"{repository!r} is no name of a data set", mend="write ORG/NAME, or your user name and NAME")
    if get_token() is None:
        raise UserError("nobody is logged in to the hub", mend="run: hf auth login, or set HF_TOKEN")
    names = dict(_local_names(manifest.to_json()))
    if names:
        shown = ", ".join(f"{path} as {name}" for path, name in names.items())
        note(f"names of this machine are not uploaded: {shown}")
    try:
        api = HfApi()
        api.create_repo(repository, repo_type="dataset", private=private or None, exist_ok=True)
        if private and not api.repo_info(repository, repo_type="dataset").private:
            raise UserError(
                "is public already", where=repository, mend="make it private on the hub, or leave --private"
            )
        if revision is not None:
            api.create_branch(repository, repo_type="dataset", branch=revision, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="logodata-push-") as staged:
            files = _stage(folder, Path(staged), names)
            api.upload_folder(
                repo_id=repository,
                repo_type="dataset",
                folder_path=staged,
                revision=revision,
                allow_patterns=files,
                # An earlier build may have had more files, which load_dataset would read too.
                delete_patterns="data/*.parquet",
                commit_message=f"LOGO preference data, {manifest.samples} samples",
            )
        return f"{api.endpoint}/datasets/{repository}" + (f"/tree/{revision}" if revision else "")
    except errors.HFValidationError as error:
        raise UserError(str(error).splitlines()[0], mend="write ORG/NAME") from error
    except errors.OfflineModeIsEnabled as error:
        raise UserError("the hub is switched off (HF_HUB_OFFLINE)", mend="unset HF_HUB_OFFLINE") from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"the hub refuses: {_reason(error)}", where=repository, mend=_mend(error)) from error
    # The base class of the HTTP client's own errors, of which there are two by the version of huggingface_hub.
    except errors.HTTPError as error:  # type: ignore[attr-defined]
        raise UserError(f"cannot reach the hub: {error}", mend="check the network, then run this again") from error


def _check_finished(folder: Path) -> AnyManifest:
    if not folder.is_dir():
        raise UserError("no such folder", where=str(folder), mend="give the -o of logodata build")
    if (path := folder / SHARD_FILE).exists():
        shard = ShardRecord.from_json(read_json(path), where=str(path), mend="build this shard again")
        raise UserError(
            f"is shard {shard} of a build",
            where=str(folder),
            mend="join the shards first: logodata merge shard-* -o DIR",
        )
    if not (folder / "manifest.json").exists():
        raise UserError(
            "holds no finished build", where=str(folder), mend="run the same logodata build again, it goes on"
        )
    sample_files(folder)
    return read_manifest(folder)


def _stage(folder: Path, staged: Path, names: dict[str, str]) -> list[str]:
    """Fill ``staged`` with data as links and the rest with ``names`` in place of paths, and return the files in it."""
    for file in (*sample_files(folder), *(folder / name for name in (_CARD, *_JSON_FILES, *_JSON_LINES))):
        # In a folder of somebody else, a link may lead to any file of the user, and an upload cannot be taken back.
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError("is a link out of the data set's folder", where=str(file), mend="put the file itself there")
    (staged / "data").mkdir()
    for file in sample_files(folder):
        (staged / "data" / file.name).symlink_to(file.resolve())
    text = (folder / _CARD).read_text(encoding="utf-8")
    for path, short in names.items():
        # Code holds the path as it is, and a table holds it with its signs escaped.
        text = text.replace(path, short).replace(markdown_cell(path), markdown_cell(short))
    (staged / _CARD).write_text(text, encoding="utf-8")
    for name in _JSON_FILES:
        write_json(staged / name, _renamed(read_json(folder / name), names))
    for name in filter(lambda name: (folder / name).exists(), _JSON_LINES):
        with open(staged / name, "w", encoding="utf-8") as target:
            for _, row in json_objects(folder / name, mend="build the data set again"):
                target.write(strict_dumps(_renamed(row, names)) + "\n")
    return sorted(str(file.relative_to(staged)) for file in staged.rglob("*") if file.is_file())


def _local_names(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield names of this machine, each with what is uploaded instead: paths, longest first, then servers."""
    found = {text for _, text in _strings(manifest) if text.startswith(("/", "~", "../"))}
    found |= {str(expand_home(text)) for text in found}
    names = {path: Path(path).name for path in found}
    texts = (Path(path) for path in found if path[0] != "~" and Path(path).suffix.lower() in SUFFIXES)
    # The questions on a text file count under its folder.
    names |= {str(file.parent): "." for file in texts if str(file.parent) not in names}
    named = (path for path in names if Path(path).name.strip("."))  # no root, and no bare `..`
    yield from ((path, names[path]) for path in sorted(named, key=len, reverse=True))
    urls = dict.fromkeys(text for key, text in _strings(manifest) if key == "base_urls")
    yield from ((url, f"http://server-{number}/v1") for number, url in enumerate(urls, 1))


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a JSON value, each after the key above it."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """Return a JSON value with ``names`` in place of the paths at the beginning of its strings."""
    if isinstance(value, str):
        # As in ``path:line`` and ``path[split]``; text that only mentions a path stays as it is.
        for path, short in names.items():
            if value == path or value.startswith((f"{path}/", f"{path}:", f"{path}[")):
                return short + value[len(path) :]
        return value
    if isinstance(value, dict):
        return {_renamed(key, names): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return value


def _reason(error: Any) -> str:
    from huggingface_hub import get_token

    said, token = str(error.server_message or str(error).splitlines()[0]), get_token()
    return said.replace(token, "***") if token else said


def _mend(error: Any) -> str:
    status = error.response.status_code if error.response is not None else None
    if status == 401:
        return "the token is not valid: run hf auth login, or set HF_TOKEN"
    if status in (403, 404):
        return "the token needs the right to write there"
    return "run the same command again"
