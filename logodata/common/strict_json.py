"""JSON as its standard has it. Python's own writer lets ``NaN`` and ``Infinity`` through, which no other
reader takes (``jq``, pandas, a browser): a file with one of them is lost to whoever gets it."""

from __future__ import annotations

import json
from typing import Any

from logodata.common.printable import encodable


def dumps(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """``value`` as text; ``ascii_only`` escapes other characters, for a terminal that may not know them. Names of files
    that are not UTF-8 are written as :func:`~logodata.common.printable.encodable` has them.

    Raises:
        ValueError: a number in it is not finite. A number that may be is checked where it is computed
            (:mod:`logodata.common.finite`), where its place can be named.
    """
    text = encodable(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False), backslash="\\\\")
    return json.dumps(json.loads(text), indent=indent) if ascii_only else text
