"""Chat templates come with models and are programs: they reach nothing, and they end."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

import logodata.common.chat_template
from logodata.cli import main
from logodata.common.chat_template import render_chat
from logodata.common.errors import UserError
from logodata.common.turn_end import turn_end_ids
from logodata.models.loading import load_tokenizer
from logodata.prompts import PromptFormat
from tests.conftest import CHATML, make_tokenizer

OUT = "{{ messages[0]['content'] }}"
REFUSED = {
    "a class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "a class by name": ("{{ ''|attr('__class__')|attr('__mro__') }}", "drops or repeats"),  # undefined, hence empty
    "a class by format": ("{{ '{0.__class__.__mro__}'.format('') }}", "SecurityError"),
    "the machine": ("{{ lipsum.__globals__['os'].popen('touch TRAP').read() }}", "SecurityError"),
    "the template": ("{{ self._TemplateReference__context.eval_ctx }}", "SecurityError"),
    "a file": ("{% include 'TRAP' %}", "TypeError"),
    "a list changed": ("{% set _ = messages.append(1) %}" + OUT, "SecurityError"),
    "a long range": ("{% for a in range(10**9) %}{% endfor %}" + OUT, "OverflowError"),
    "a long text": ("{{ 'x' * 10**11 }}", "OverflowError it repeats a text too often"),
    "a long list": ("{{ 10**11 * [1] }}", "OverflowError it repeats a text too often"),
    "a wide text": ("{{ '%100000000000d' % 1 }}", "OverflowError it formats a value too widely"),
    "a wide text of two numbers": ("{{ '%*d' % (10**11, 1) }}", "OverflowError it formats a value too widely"),
    "a power": ("{{ 9 ** (9 ** 9) }}", "OverflowError a number is too large"),
    "a square": ("{% set n = 2 ** 30000 %}{{ n * n * n }}", "OverflowError a number is too large"),
    "many pieces": ("{% for a in range(99999) %}" + "x" * 10000 + "{% endfor %}", "OverflowError it writes too long"),
    "many pieces of a block": (
        "{% set text %}{% for a in range(99999) %}" + "x" * 10000 + "{% endfor %}{% endset %}" + OUT,
        "OverflowError it writes too long",
    ),
    "itself": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    "nested": (f"{{{{ {'(' * 5000}1{')' * 5000} }}}}", "RecursionError"),
    "half a template": ("{% if %}", "TemplateSyntaxError"),
    "division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "no such thing": ("{{ nothing.at.all }}", "UndefinedError"),
    "its own refusal": ("{{ raise_exception('only system messages') }}", "TemplateError only system messages"),
    "two million characters": (OUT + "{{ 'x' * 2000000 }}", "adds more than a million characters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_template_that_reaches_out_or_grows_is_one_line(case: str, tmp_path: Path) -> None:
    template, said = REFUSED[case]
    trap = tmp_path / "trap"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template.replace("TRAP", str(trap))
    with pytest.raises(UserError) as caught:
        PromptFormat(tokenizer, "{question}")
    assert said in str(caught.value)
    assert "chat_template=FILE" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not trap.exists()


def test_a_template_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logodata.common.chat_template, "_SECONDS", 0.2)
    loop = "{% for a in range(99999) %}"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = loop * 3 + "{% endfor %}" * 3 + OUT
    start = time.monotonic()
    for run in (lambda: PromptFormat(tokenizer, "{question}"), lambda: turn_end_ids(tokenizer)):
        with pytest.raises(UserError, match=r"the chat template fails: TimeoutError it takes more than 0\.2 s"):
            run()
    assert time.monotonic() - start < 60  # it would be years
    tokenizer.chat_template = CHATML
    assert render_chat(tokenizer, "q", "a").endswith("a<|im_end|>\n"), "nothing of the bounds is left"


def test_templates_of_the_recipe_and_of_the_model(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole command, with the template as a file, and in the folder of a model that a server serves."""
    row = {"doc_id": "d", "context": "Some text. " * 200, "question": "What is it?", "answers": ["text"]}
    (tmp_path / "docs.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "evil.jinja").write_text("{{ ''.__class__.__base__ }}")
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    build = ["build", str(tmp_path / "docs.jsonl"), "--model", str(folder)]
    assert main([*build, "-o", str(tmp_path / "a"), f"chat_template={tmp_path / 'evil.jinja'}"]) == 2
    assert "the chat template fails: SecurityError" in capsys.readouterr().err.splitlines()[-1]
    (folder / "chat_template.jinja").write_text("{{ 'x' * 10**11 }}")
    server = ["engine.kind=openai", "engine.base_urls=[http://127.0.0.1:9]"]
    assert main([*build, "-o", str(tmp_path / "b"), *server]) == 2
    assert "the chat template fails: OverflowError" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "huge.jinja").write_bytes(b"x" * 2**21)
    with pytest.raises(UserError, match=r"huge\.jinja: more than 1 MiB"):
        load_tokenizer(str(folder), tmp_path / "huge.jinja")
