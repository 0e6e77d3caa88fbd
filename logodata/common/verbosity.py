"""How much a command says besides its results. ``-q`` and ``-v`` set it, and everything that speaks asks for it."""

from __future__ import annotations

from typing import Literal

Level = Literal["quiet", "normal", "verbose"]

level: Level = "normal"
"""``quiet``: nothing but results and errors. ``verbose``: also the notes of libraries, and where errors come from."""
