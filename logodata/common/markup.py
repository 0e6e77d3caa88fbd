"""HTML that is escaped by construction: every child is text unless it came out of :func:`tag` or :func:`raw`."""

from __future__ import annotations

from html import escape
from importlib import resources


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def raw(markup: str) -> Html:
    """Trust ``markup``: for style sheets and drawings of our own, never for text from data."""
    return Html(markup)


def tag(name: str, *children: str, **attributes: str) -> Html:
    """An element. Children that are not :class:`Html` are escaped; ``class_`` writes ``class``, ``_`` writes ``-``."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Children one after the other, text among them escaped."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def page(title: str, style: str, *body: str) -> str:
    """A whole document that loads nothing from elsewhere and fits a phone.

    Args:
        title: shown in the browser's tab.
        style: rules of its own, after those of ``page.css``, which every page shares.
        body: its content.
    """
    shared = resources.files("logodata.common").joinpath("page.css").read_text(encoding="utf-8")
    head = join(
        tag("title", title),
        raw('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("style", raw(shared + style)),
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>{join(*body)}</main></body></html>\n'
