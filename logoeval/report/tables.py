"""The sections and tables of a report. Each table is written as HTML and as Markdown from the same cells."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from logodata.common.markup import Html, join, raw, tag
from logodata.common.printable import markdown_text
from logodata.common.records import Record


class Cell(NamedTuple):
    """A cell with several lines: the text, the small ``hint``, and ``mark`` in the colour of the class ``style``."""

    text: str
    hint: str = ""
    mark: str = ""
    style: str = ""

    def __str__(self) -> str:
        """Return the cell in one line."""
        added = ", ".join(part for part in (self.hint, self.mark) if part)
        return f"{self.text} ({added})" if self.text and added else self.text or added


class TableRecord(Record):
    """A table as text."""

    title: str
    head: list[str]
    rows: list[list[str]]


class SectionRecord(Record):
    """The tables of a section."""

    title: str
    tables: list[TableRecord]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text. The first column names the row; the other columns are numbers, aligned right. A row of one cell
    is a heading for the rows below it."""

    title: str
    """The name of the table."""
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    text_columns: Collection[int] = ()
    """The columns besides the first that are text, aligned left."""
    style: str = ""
    """CSS classes of the table. ``stacks`` makes a row a block on a telephone, with names before the numbers."""
    row_styles: Mapping[int, str] = field(default_factory=dict)
    """CSS classes of rows, by their numbers."""
    wide: bool = False
    """Whether the table may be wider than the text if the window is."""

    def html(self) -> Html:
        """Return the table as an HTML element that scrolls separately."""
        head = [tag("th", text, scope="col", **self._aligned(number)) for number, text in enumerate(self.head)]
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
            cells.append(tag("td", *_lines(cell, minus=not self._is_text(number)), **self._aligned(number), **name_of))
        return tag("tr", *cells, **({"class_": style} if style else {}))

    def _is_text(self, column: int) -> bool:
        return column == 0 or column in self.text_columns

    def _aligned(self, column: int) -> dict[str, str]:
        return {} if self._is_text(column) else {"class_": "n"}

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rule = ["---" if self._is_text(number) else "---:" for number in range(len(self.head))]
        rows = [
            [_one_line(str(cell)) for cell in row]
            if len(row) > 1
            else [f"**{_one_line(str(row[0]))}**", *[""] * (len(self.head) - 1)]
            for row in self.rows
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in ([*map(_one_line, self.head)], rule, *rows))

    def record(self) -> TableRecord:
        """Return the text of the table."""
        rows = [[str(cell) for cell in row] for row in self.rows]
        return TableRecord(title=self.title, head=list(self.head), rows=rows)


def _lines(cell: str | Cell, *, minus: bool = False) -> list[str]:
    cell = cell if isinstance(cell, Cell) else Cell(cell)

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
    """A part of the report with a heading. ``tables`` are the tables in ``body`` that Markdown and JSON have too."""

    title: str
    body: Html
    tables: Sequence[Table] = ()

    @property
    def anchor(self) -> str:
        """The id of the section in the page."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    def html(self) -> Html:
        """Return the section as an HTML element."""
        return tag("section", tag("h2", self.title), self.body, id=self.anchor)

    def markdown(self) -> str:
        """Return the heading and the tables in Markdown, or "" if there are no tables."""
        if not self.tables:
            return ""
        parts = [f"**{markdown_text(table.title)}**\n\n{table.markdown()}" for table in self.tables]
        return "\n\n".join([f"## {self.title}", *parts])


def details(table: Table, summary: str) -> Html:
    """Return a table that is folded until the reader opens it."""
    return tag("details", tag("summary", summary), table.html())


def not_whole(limits: Iterable[str]) -> Html:
    """Say in what a benchmark was cut short."""
    return join(*(tag("p", tag("strong", f"Not the whole benchmark: {text}."), class_="limit") for text in limits))


def titled(table: Table) -> Html:
    """Return a table under a small heading."""
    return join(tag("h3", table.title), table.html())


def figure(drawings: Sequence[Html], caption: str = "", *, key: str = "") -> Html:
    """Return drawings side by side, below their legend and above their caption. More than two may be wider than the
    text."""
    panels = tag("div", *drawings, class_="panels wide" if len(drawings) > 2 else "panels")
    return tag("figure", key, panels, tag("figcaption", caption) if caption else "")


def all_points(table: Table | None) -> Html:
    """Return the table of :func:`logoeval.report.measures.changes_table` folded, or nothing if there is none."""
    return details(table, f"all {len(table.rows)} points with their intervals") if table else raw("")
