"""How much a command says besides its results. ``-q`` and ``-v`` set it, and everything that speaks asks for it."""

from __future__ import annotations

from typing import Literal

Level = Literal["quiet", "normal", "verbose"]

level: Level = "normal"
"""``quiet``: nothing but results and errors. ``verbose``: also the notes of libraries, and where errors come from."""


def quiet_transformers() -> None:
    """Silence progress bars and advice of transformers and of what it imports, unless ``-v`` asks for them.

    Errors still appear.
    """
    if level == "verbose":
        return
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # PEFT imports bitsandbytes if it is installed, which then asks for a package that is not needed here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
