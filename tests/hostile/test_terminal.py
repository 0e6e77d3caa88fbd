"""What strangers write reaches a terminal as text: no colour, no title, no moved cursor, no link, no turned letters."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from logodata.common import console
from logodata.common.errors import UserError, run_command
from logodata.common.printable import markdown_code, markdown_text, printable

EVIL = (
    "a\x1b[31mred\x1b]0;title\x07\x1b]8;;http://e.vil\x1b\\link\x9b2Jb\x08\r\x7f\u202egpj.exe\ud83d"
    "[bold]x[/nope] :smile:"
)
SHOWN = "a␛[31mred␛]0;title␇␛]8;;http://e.vil␛\\link\ufffd2Jb␈␍␡\ufffdgpj.exe\ufffd[bold]x[/nope] :smile:"


def is_safe(text: str) -> bool:
    return not any(ord(letter) < 32 and letter not in "\n\t" for letter in text) and not any(
        letter in text for letter in "\x7f\x9b\u202e\ud83d"
    )


def test_printable_keeps_text_and_shows_the_rest() -> None:
    assert printable(EVIL) == SHOWN
    assert printable("日本語 é\tx\r\ny\n") == "日本語 é\tx\ny\n"


def test_error_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise UserError(EVIL, where=EVIL, mend=EVIL)

    assert run_command(EVIL, fail) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert is_safe(said)
    assert said.count("␛[31mred") == 4


def test_notes_results_tables_and_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    for terminal in (False, True):
        out = io.StringIO()
        plain = console._Console(file=out, force_terminal=terminal, width=3000, color_system=None)
        monkeypatch.setattr(console, "stderr", plain)
        console.note(EVIL)
        console.show(table)
        console.show(Panel(Text(EVIL), title=Text(EVIL)))
        monkeypatch.setenv("LOGO_PROGRESS", f"plain:{EVIL}".replace("\ud83d", ""))
        with console.progress(EVIL, 1) as tracker:
            tracker.advance(said=EVIL)
        assert is_safe(out.getvalue())
        assert out.getvalue().count("[bold]x[/nope] :smile:") >= 6, "titles are cut"
    console.result(EVIL)
    assert is_safe(capsys.readouterr().out)


def test_a_live_bar_moves_the_cursor_but_not_by_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.delenv("LOGO_PROGRESS", raising=False)
    monkeypatch.setattr(console, "stderr", console._Console(file=out, force_terminal=True, width=400))
    monkeypatch.setattr("sys.stderr", _Terminal())
    with console.progress(EVIL, 1) as tracker:
        tracker.advance(said=EVIL)
    assert "\x1b[" in out.getvalue(), "rich's own"
    assert "␛[31mred" in out.getvalue()
    assert "\x1b[31mred" not in out.getvalue()
    assert not any(letter in out.getvalue() for letter in "\x07\x9b\u202e")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


MARKDOWN: dict[str, Any] = {
    "a <script>alert(1)</script>": r"a \<script>alert(1)\</script>",
    "<!-- x -->": r"\<!-- x -->",
    "[click](javascript:alert(1))": r"[click]\(javascript:alert(1))",
    "![x](http://e.vil/pixel.png)": r"![x]\(http://e.vil/pixel.png)",
    "`code`\n\n# Heading": r"\`code\` # Heading",
    "1 < 2 [0.15, 0.31] 42.3*": "1 < 2 [0.15, 0.31] 42.3*",
    EVIL: SHOWN.replace("\\", "\\\\"),
}


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown_stays_text(text: str) -> None:
    assert markdown_text(text) == MARKDOWN[text]


@pytest.mark.parametrize(
    ("text", "code"), [("a/b.jsonl", "`a/b.jsonl`"), ("a`b``c", "```a`b``c```"), ("`x`\n\n<b>", "`` `x` <b> ``")]
)
def test_markdown_code_is_not_left(text: str, code: str) -> None:
    assert markdown_code(text) == code
