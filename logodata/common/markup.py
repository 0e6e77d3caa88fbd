"""Write HTML that is escaped by construction: every child is text unless it came from :func:`tag` or :func:`raw`."""

from __future__ import annotations

from html import escape
from importlib import resources


class Html(str):
    """Text that is already markup."""

    __slots__ = ()


def raw(markup: str) -> Html:
    """Trust ``markup``. This is for our own style sheets and drawings, never for text from data."""
    return Html(markup)


def tag(name: str, *children: str, **attributes: str) -> Html:
    """Return an element. Children that are not :class:`Html` are escaped; ``class_`` writes ``class``, ``_`` writes
    ``-``."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Return the children joined, with text among them escaped."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def page(title: str, style: str, *body: str) -> str:
    """Return a whole document that loads nothing from elsewhere and fits a phone. The rules of ``style`` follow those
    of ``page.css``, which every page shares."""
    shared = resources.files("logodata.common").joinpath("page.css").read_text(encoding="utf-8")
    head = join(
        tag("title", title),
        raw('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("style", raw(shared + style)),
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{join(*body)}</main></body></html>\n'
