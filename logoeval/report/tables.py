"""What a report is made of: sections with tables, each table written as HTML and as Markdown from the same cells."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from logodata.common.markup import Html, join, raw, tag
from logodata.common.printable import markdown_text


class Cell(NamedTuple):
    """A cell of more than one line: ``hint`` is written small below the text, ``mark`` below it in the colour of the
    class ``style``."""

    text: str
    hint: str = ""
    mark: str = ""
    style: str = ""

    def __str__(self) -> str:
        """In one line."""
        added = ", ".join(part for part in (self.hint, self.mark) if part)
        return f"{self.text} ({added})" if self.text and added else self.text or added


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a head. The first column names the row; the others are numbers, set to the right. A row of
    one cell is a heading over the rows below it."""

    title: str
    """What the table shows: its name where it stands alone."""
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    text_columns: Collection[int] = ()
    """Columns besides the first that are words, set to the left."""
    style: str = ""
    """CSS classes. ``stacks``: on a telephone a row becomes a block, its numbers with their names before them."""
    row_styles: Mapping[int, str] = field(default_factory=dict)
    """CSS classes of rows, by number."""
    wide: bool = False
    """Wider than the text, where the window is."""

    def html(self) -> Html:
        """The table in a frame that scrolls by itself."""
        head = [
            tag("th", text, scope="col", **({} if self._is_text(number) else {"class_": "n"}))
            for number, text in enumerate(self.head)
        ]
        table = tag(
            "table",
            tag("thead", tag("tr", *head)) if any(self.head) else "",
            tag("tbody", *(self._row(row, self.row_styles.get(number, "")) for number, row in enumerate(self.rows))),
            class_=self.style or "plain",
            aria_label=self.title,
        )
        return tag("div", table, class_="scroll wide" if self.wide else "scroll")

    def _row(self, row: Sequence[str | Cell], style: str) -> Html:
        name, *others = row
        if not others:
            spanned = {"colspan": str(len(self.head)), "scope": "rowgroup"}
            return tag("tr", tag("th", *_lines(name), **spanned), class_="group")
        cells = [tag("th", *_lines(name), scope="row")]
        for number, cell in enumerate(others, 1):
            name_of = {"data_name": self.head[number]} if self.head[number] else {}
            if self._is_text(number):
                cells.append(tag("td", *_lines(cell), **name_of))
            else:
                cells.append(tag("td", *_lines(cell, minus=True), class_="n", **name_of))
        return tag("tr", *cells, **({"class_": style} if style else {}))

    def _is_text(self, column: int) -> bool:
        return column == 0 or column in self.text_columns

    def markdown(self) -> str:
        """The same, a line a row."""
        rule = ["---" if self._is_text(number) else "---:" for number in range(len(self.head))]
        rows = [
            [_one_line(str(cell)) for cell in row]
            if len(row) > 1
            else [f"**{_one_line(str(row[0]))}**", *[""] * (len(self.head) - 1)]
            for row in self.rows
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in ([*map(_one_line, self.head)], rule, *rows))

    def record(self) -> dict[str, Any]:
        """The same as text, for JSON."""
        return {
            "title": self.title,
            "head": list(self.head),
            "rows": [[str(cell) for cell in row] for row in self.rows],
        }


def _lines(cell: str | Cell, *, minus: bool = False) -> list[str]:
    if not isinstance(cell, Cell):
        cell = Cell(cell)

    def number(text: str) -> str:
        return text.replace("-", "\N{MINUS SIGN}") if minus else text

    lines = [number(cell.text)]
    if cell.hint:
        lines.append(tag("span", number(cell.hint), class_="hint"))
    if cell.mark:
        lines.append(tag("span", cell.mark, class_=f"mark {cell.style}"))
    return lines


def _one_line(text: str) -> str:
    return markdown_text(text.replace("|", "/"))


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report with a heading. ``tables`` are those within ``body``; Markdown and JSON hold them."""

    title: str
    body: Html
    tables: Sequence[Table] = ()

    @property
    def anchor(self) -> str:
        """Its address within the page."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    def html(self) -> Html:
        """The section as an element."""
        return tag("section", tag("h2", self.title), self.body, id=self.anchor)

    def markdown(self) -> str:
        """Its tables under its heading; nothing where it has none."""
        if not self.tables:
            return ""
        parts = [f"**{markdown_text(table.title)}**\n\n{table.markdown()}" for table in self.tables]
        return "\n\n".join([f"## {self.title}", *parts])


def details(table: Table, summary: str) -> Html:
    """A table that is shown on demand."""
    return tag("details", tag("summary", summary), table.html())


def titled(table: Table) -> Html:
    """A table under a small heading of its own."""
    return join(tag("h3", table.title), table.html())


def panels(drawings: Sequence[Html]) -> Html:
    """Panels side by side, as many as the window holds; more than two may leave the text's width."""
    return tag("div", *drawings, class_="panels wide" if len(drawings) > 2 else "panels")


def all_points(table: Table | None) -> Html:
    """What :func:`changes_table` found, on demand."""
    return details(table, f"all {len(table.rows)} points with their intervals") if table else raw("")
