"""Recognise the form of pairs from the columns of all their rows.

| form | columns | prompt |
| --- | --- | --- |
| ``standard`` | ``prompt``, ``chosen``, ``rejected``: texts | the text |
| ``standard-implicit`` | ``chosen``, ``rejected``: texts | what both begin with |
| ``conversational`` | ``prompt``, ``chosen``, ``rejected``: messages | the messages |
| ``conversational-implicit`` | ``chosen``, ``rejected``: messages; maybe ``prompt``: text | what both begin with |
| ``sharegpt`` | ``conversations``; ``chosen``, ``rejected``: a message | the conversation |
| ``alpaca`` | ``instruction``, ``input``, ``system``, ``history``; ``chosen``, ``rejected`` | these as a conversation |
| ``context`` | ``context``, ``query``; ``chosen`` or ``win_response``, ``rejected`` or ``lose_response`` | a message |
| ``ratings`` | ``instruction`` or ``prompt``; ``completions`` with ratings (UltraFeedback) | one message |
| ``text`` | what ``logodata export --format text`` writes | the text |

The first two forms are TRL's "standard", the next two its "conversational" preference format (TRL's page on dataset
formats); OpenRLHF's are the same. ``sharegpt`` and ``alpaca`` are LLaMA-Factory's (its data/README.md). The columns
``win_response`` and ``lose_response`` are those of LongReward's code (batch_inference/3_get_pairs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from logodata.common.errors import SettingError, UserError, did_you_mean
from logodata.contract import PairFormat
from logodata.pairs.messages import Tags
from logodata.pairs.rows import PairRows
from logodata.pairs.settings import ALIASES
from logodata.sources.fields import column_of, names_of, spelt

_ROWS_NAMED = 3
_WITH_MESSAGES = ("messages", "chosen", "rejected")
_LISTS = ("rejected", "history", "messages", "completions", "ratings", "rejected_strategies", "rejected_ended")


class PairRow:
    """A row of pairs, read by our fields. ``columns`` are the rows' own columns for them, and ``tags`` the names in
    their messages."""

    __slots__ = ("_columns", "_row", "_spelt", "_tags", "where")

    def __init__(
        self, row: Mapping[str, Any], where: str, columns: Mapping[str, str], is_table: bool, tags: Tags | None = None
    ) -> None:
        self._row, self.where, self._columns, self._tags, self._spelt = row, where, columns, tags, is_table

    def __getitem__(self, field: str) -> Any:
        """Return the value of a field; None if it is absent, null, or an empty cell. A text that spells messages is
        these messages, and in a table of text one that spells a list in a field of lists is that list."""
        names = (self._columns[field],) if field in self._columns else ALIASES.get(field, (field,))
        keys = (column_of(self._row, name) for name in names)
        value = next((self._row[key] for key in keys if key is not None and self._row[key] is not None), None)
        if not isinstance(value, str):
            return self._tags.renamed(value) if self._tags and field in _WITH_MESSAGES else value
        found = spelt(value)
        is_list = self._spelt and field in _LISTS and not (field == "rejected" and self._chosen_is_list_as_text())
        return found if found is not value and (is_list or _are_messages(found)) else value

    def _chosen_is_list_as_text(self) -> bool:
        """Return whether the preferred response is a text that spells a list. Then lists are what is answered, and a
        dis-preferred one is one response."""
        chosen = self["chosen"]
        return isinstance(chosen, str) and isinstance(spelt(chosen), list)

    @property
    def names(self) -> str:
        """The row's columns, for messages."""
        return names_of(self._row)


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(it, dict) and _is_message(it) for it in value)


def _is_message(value: Mapping[str, Any]) -> bool:
    return "role" in value or "from" in value


def form_of(row: PairRow) -> PairFormat | None:
    """Return the form of a row; None if it lacks what every form has."""
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    if row["rejected_strategies"] is not None and isinstance(prompt, str):
        return "text"
    if isinstance(row["completions"], list):
        return "ratings" if prompt is not None or row["instruction"] is not None else None
    if chosen is None or rejected is None:
        return None
    if prompt is not None:
        if isinstance(prompt, list):
            return "conversational"
        return "standard" if _holds_text(chosen) else "conversational-implicit"
    if isinstance(row["messages"], list):
        return "sharegpt"
    if isinstance(row["context"], str) and row["question"] is not None:
        return "context"
    if row["instruction"] is not None:
        return "alpaca"
    return "standard-implicit" if _holds_text(chosen) else "conversational-implicit"


def _holds_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], str))


@dataclass(frozen=True, slots=True)
class Recognised:
    """The form of pairs, and the number of rows."""

    form: PairFormat
    num_rows: int


def pair_rows(opened: PairRows) -> Callable[[], Iterator[PairRow]]:
    """Return a reader of the rows by our fields."""
    return lambda: (PairRow(row, where, opened.columns, opened.is_table, opened.tags) for where, row in opened.rows())


def recognise(
    rows: Iterable[PairRow], shown: str, columns: Mapping[str, str], given: PairFormat | None = None
) -> Recognised:
    """Return the form that all rows have, but for those that lack a column of their own: the ``given`` one, if any.

    Raises:
        UserError: There is no row, the rows have several forms, none of a known form, or a column that was named is in
            no row.
    """
    places: dict[PairFormat, list[str]] = {}
    count = 0
    first: PairRow | None = None
    unseen = dict(columns)
    for row in rows:
        count += 1
        first = first or row
        for field in [field for field in unseen if row[field] is not None]:
            del unseen[field]
        form = given or form_of(row)
        if form is not None:
            places.setdefault(form, []).append(row.where)
    if first is None:
        raise UserError(
            "holds no pair", where=shown, mend="write one JSON object a line, with prompt, chosen and rejected"
        )
    if unseen:
        field, column = next(iter(unseen.items()))
        mend = did_you_mean(column, first.names.split(", "), f"found: {first.names}")
        setting = f"columns.{field}=YOUR_COLUMN"
        raise SettingError(f"no row has a column {column!r}", where=shown, setting=setting, mend=mend)
    if len(places) > 1:
        found = "; ".join(f"{form} in {_some(where)}" for form, where in places.items())
        mend = "or give each form a file of its own"
        raise SettingError(f"rows of {len(places)} forms: {found}", where=shown, setting="format=FORM", mend=mend)
    if not places:
        raise _unknown(first, shown)
    return Recognised(next(iter(places)), count)


def _some(places: list[str]) -> str:
    more = f" and {len(places) - _ROWS_NAMED} more" if len(places) > _ROWS_NAMED else ""
    return ", ".join(places[:_ROWS_NAMED]) + more


def _unknown(row: PairRow, shown: str) -> SettingError:
    """Return the error for rows of no known form. It names the column that is nearest to a missing one."""
    missing = next((field for field in ("chosen", "rejected") if row[field] is None), "prompt")
    near = did_you_mean(missing, row.names.split(", "), "", cutoff=0.7)
    mend = f"{near} found: {row.names}".lstrip()
    return SettingError(
        f"no row has a field {missing!r}", where=shown, setting=f"columns.{missing}=YOUR_COLUMN", mend=mend
    )
