"""What a page that text of strangers went into must be: checked by a parser, and in Chromium where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

_RUN = "document.title='PWNED'"
EVIL = (
    f'</style></title></summary></pre></svg></td><script>{_RUN}</script><img src=x onerror="{_RUN}">'
    f'<svg onload={_RUN}><a href="javascript:{_RUN}">x</a>" onmouseover="{_RUN}" autofocus onfocus="{_RUN}" \'>'
    f'<iframe srcdoc="<script>parent.{_RUN}</script>"></iframe>--><script>{_RUN}</script>]]>&lt;b&gt;$\\frac{{$'
)

_ELEMENTS = """
 html head title meta style body main section header footer nav h1 h2 h3 h4 p ul ol li a strong em span mark table
 caption thead tbody tr th td details summary div figure figcaption pre code svg g path defs clippath rect use text
 tspan line circle polygon lineargradient stop
""".replace("\n", " ")


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.title, self.within = "", "", ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.within = tag
        assert f" {tag} " in _ELEMENTS, f"<{tag}> is none of ours"
        for name, value in attrs:
            assert not name.startswith(("on", "src", "action", "formaction")), (tag, name)
            if name in ("href", "xlink:href"):
                assert (value or "").startswith("#"), value
            if name == "style":
                assert "url(" not in (value or "").replace("url(#", ""), value

    def handle_data(self, data: str) -> None:
        if self.within == "style":
            assert "PWNED" not in data
        self.text += data

    def handle_comment(self, data: str) -> None:
        assert "<" not in data or "PWNED" not in data, "a browser may see another end of this comment"


def check_page(page: str, *, told: int) -> None:
    """The page holds elements of ours only, and what the strangers wrote at least ``told`` times, as text."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.text.count(_RUN) >= told * EVIL.count(_RUN), parser.text.count(_RUN)
    assert not re.search(r"<(script|img|iframe)", page)


def chromium() -> str:
    """The browser; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here (apt-get install chromium)")
    return found


def runs_script(page: Path, profile: Path) -> bool:
    """Whether anything on a page runs in Chromium."""
    command = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-dev-shm-usage", f"--user-data-dir={profile}", "--virtual-time-budget=1000", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=300)
    assert "<body>" in done.stdout, done.stderr[-2000:]
    return "<title>PWNED</title>" in done.stdout
