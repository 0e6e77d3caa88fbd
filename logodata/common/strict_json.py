"""JSON as its standard has it. Python's own writer lets ``NaN`` and ``Infinity`` through, which no other
reader takes (``jq``, pandas, a browser): a file with one of them is lost to whoever gets it."""

from __future__ import annotations

import json
from typing import Any


def dumps(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """``value`` as text; ``ascii_only`` escapes other characters, for a terminal that may not know them.

    Raises:
        ValueError: a number in it is not finite. A number that may be is checked where it is computed
            (:mod:`logodata.common.finite`), where its place can be named.
    """
    return json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False)
