"""lm-evaluation-harness: whether it is there, its tasks by name, its voice on our terminal."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import io
import logging
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

from logodata.common.console import note
from logodata.common.errors import UserError, pass_on
from logodata.common.files import file_sha256
from logodata.common.user_files import visible_files
from logoeval.tasks.short.settings import ShortSettings

_CHATTER = (
    "Overwriting default num_fewshot",  # what was asked for
    "`pretrained` model kwarg is not of type `str`",  # on purpose
    "Passed an already-initialized model",
    "Combined length of context",  # counted by HarnessModel
    "Left truncation applied",
    "Custom kwargs can be passed to `--metadata`",
)
"""Warnings that tell a reader nothing, or what we tell already: parts of their texts."""


def harness_version() -> str:
    """Return the installed version of lm-eval.

    Raises:
        UserError: the extra is missing.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed, which short needs", mend="pip install 'logo-align[short]'")
    return version("lm_eval")


def folder_fingerprint(folder: Path | None) -> str | None:
    """Return a hash of the files of ``short.include_path``: those of tasks, and the data that lie beside them.

    Raises:
        UserError: there is no such folder, or no task in it.
    """
    if folder is None:
        return None
    files = sorted(file for file in visible_files(folder) if "__pycache__" not in file.parts)
    if not any(file.suffix == ".yaml" for file in files):
        raise UserError("no task file (.yaml) here", where=str(folder), mend="give the folder of your own tasks")
    digest = hashlib.sha256()
    for file in files:
        name = file.relative_to(folder).as_posix()
        if file.suffix in (".yaml", ".py"):
            digest.update(os.fsencode(f"{name}:{file.stat().st_size}:"))
            digest.update(file.read_bytes())
        else:
            digest.update(os.fsencode(f"{name}:{file_sha256(file)}:"))
    return digest.hexdigest()[:16]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the harness's own bars, prints and information from our terminal; each kind of warning comes once."""
    import datasets
    import lm_eval.api.task
    import lm_eval.evaluator

    logger = logging.getLogger("lm_eval")
    before = (logger.level, logger.propagate)
    handler = _Warnings()
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    datasets.disable_progress_bars()
    # Neither can be asked for: a bar for every task's prompts, and a report on this machine that takes seconds.
    bar, report = lm_eval.api.task.tqdm, lm_eval.evaluator.add_env_info
    lm_eval.api.task.tqdm = lambda items, **_: items
    lm_eval.evaluator.add_env_info = lambda _: None
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        lm_eval.api.task.tqdm, lm_eval.evaluator.add_env_info = bar, report
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Warnings(logging.Handler):
    """Says each warning once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        place = f"{record.pathname}:{record.lineno}"
        if place not in self._said and not any(part in text for part in _CHATTER):
            self._said.add(place)
            note(f"lm-eval: {text[:300]}")


def open_manager(settings: ShortSettings, model: str) -> Any:
    """Return the harness's ``TaskManager``, with all names checked. Tasks that make their own data are told where the
    ``model`` lies, whose tokenizer they need.

    Raises:
        UserError: a name is unknown; the nearest ones are named.
    """
    from lm_eval.tasks import TaskManager

    folder = None if settings.include_path is None else str(settings.include_path)
    metadata = {"pretrained": model, **settings.metadata}
    if folder is not None:
        # Reading the harness's thousands of files takes seconds; own tasks may need none of them.
        manager = TaskManager(include_path=folder, include_defaults=False, metadata=metadata)
        if all(_complete(manager, task.name) for task in settings.tasks):
            return manager
    note("short: reading lm-eval's list of tasks")
    manager = TaskManager(include_path=folder, metadata=metadata)
    for task in settings.tasks:
        if task.name not in manager.task_index:
            near = difflib.get_close_matches(task.name, manager.all_tasks, 3, 0.5)
            raise UserError(
                f"lm-eval has no task {task.name!r}",
                where="short.tasks",
                mend=f"nearest: {', '.join(near)}" if near else "lm-eval ls tasks lists them all",
            )
    return manager


def _complete(manager: Any, name: str) -> bool:
    """Whether the index holds a task and, of a group, all members."""
    entry = manager.task_index.get(name)
    return entry is not None and all(_complete(manager, member) for member in _members(entry))


def _members(entry: Any) -> list[str]:
    """Names of a group's members or a tag's tasks; those that are written out in the group's own file have none."""
    listed = (entry.cfg or {}).get("task")
    if isinstance(listed, list):
        named = [member if isinstance(member, str) else member.get("task", member.get("group")) for member in listed]
        return [member for member in named if isinstance(member, str)]
    return sorted(entry.tags) if entry.yaml_path is None else []


def load(manager: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the harness's Task and Group objects by name, their data read. A tag stands for several tasks. Tasks that
    draw their data get the seeds that ``simple_evaluate`` sets before it loads them.

    Raises:
        UserError: a data set cannot be reached, or a task cannot be made.
    """
    import numpy as np
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)  # noqa: NPY002 - what the harness's tasks draw from
    found = {}
    for name in names:
        note(f"short: reading {name}")
        try:
            loaded = manager.load([name])
        except Exception as error:  # a task's own code and data can fail in any way
            pass_on(error)
            raise _unloadable(manager, name, error) from error
        root = loaded["groups"].get(name)
        found[name] = [root] if root is not None else list(loaded["tasks"].values())
    return found


def _unloadable(manager: Any, name: str, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, ImportError):
        return UserError(f"this task needs more packages: {reason}", where=name, mend="install them")
    sets = dict(_data_sets(manager, name))
    data = ", ".join(sets) or "its data"
    if isinstance(error, OSError) or "offline" in reason.lower() or "cache" in reason.lower():
        return UserError(
            f"cannot read the data set {data}: {reason}",
            where=name,
            mend="check the paths in its task file"
            if sets and all(sets.values())
            else "connect to the hub once, or set HF_HOME to a copied cache, or HF_ENDPOINT to a mirror; "
            "short.include_path takes tasks over local files",
        )
    return UserError(
        f"lm-eval cannot load this task ({data}): {type(error).__name__}: {reason}",
        where=name,
        mend="see its files in lm-eval, or leave it out",
    )


def _data_sets(manager: Any, name: str) -> Iterator[tuple[str, bool]]:
    """Names of the data sets of a task, of a group's members, of a tag's tasks; and whether they are local files."""
    entry = manager.task_index.get(name)
    if entry is None:
        return
    config = entry.cfg or {}
    if isinstance(config.get("dataset_path"), str) and config["dataset_path"]:
        files = (config.get("dataset_kwargs") or {}).get("data_files")
        yield (f"{config['dataset_path']} {files}" if files else config["dataset_path"]), bool(files)
    for member in _members(entry):
        yield from _data_sets(manager, member)
