"""Folders that are whole or not there, and what becomes of damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from logodata.common.files import SEAL, damage, put_aside, read_if_whole, seal


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    scratch = tmp_path / ".scratch"
    (scratch / "in").mkdir(parents=True)
    (scratch / "a").write_text("first")
    (scratch / "in" / "b").write_text("second")
    seal(scratch, tmp_path / "folder")
    return tmp_path / "folder"


def test_a_sealed_folder_is_as_it_was_written(sealed: Path) -> None:
    assert damage(sealed) == ""
    assert [path.name for path in sealed.parent.iterdir()] == ["folder"]
    (sealed / "README.md").write_text("of its owner")
    assert damage(sealed) == ""


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda folder: (folder / "a").write_text("firsT"), "a is not as it was written"),
        (lambda folder: (folder / "in" / "b").write_text("sec"), "in/b is not as it was written"),
        (lambda folder: (folder / "a").unlink(), "a is not as it was written"),
        (lambda folder: (folder / SEAL).unlink(), "no such file"),
        (lambda folder: (folder / SEAL).write_text("{"), "not valid JSON"),
        (lambda folder: (folder / SEAL).write_text("[]"), "is not a list of files"),
    ],
)
def test_damage_is_found(sealed: Path, harm: Callable[[Path], object], found: str) -> None:
    harm(sealed)
    assert found in damage(sealed)


def test_the_newest_damaged_one_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / name).touch()
        put_aside(tmp_path / "folder", "a fault", "it is made again")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["folder.damaged", "folder.damaged/two"]
    said = capsys.readouterr().err.splitlines()
    assert said == ["folder is damaged (a fault): renamed to folder.damaged, it is made again"] * 2


def test_half_a_file_does_not_pass_as_whole(tmp_path: Path) -> None:
    file, text = tmp_path / "manifest.json", json.dumps({"samples": 3, "name": "x"}, indent=2)
    assert read_if_whole(file) is None
    for length in range(len(text)):
        file.write_text(text[:length])
        assert read_if_whole(file) is None
        assert not file.exists()
        assert (tmp_path / "manifest.json.damaged").read_text() == text[:length]
    file.write_text(text)
    assert read_if_whole(file) == {"samples": 3, "name": "x"}
