"""Command lines whose overrides (``key=value``) may stand anywhere, also after options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from logodata.common.streams import open_streams


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse ``argv``; positional words that argparse leaves over are added to ``overrides``, if the command has them.

    argparse takes positionals from one place only: ``run RECIPE -o DIR key=value`` would otherwise be an error.
    """
    open_streams()  # help and usage are output, too
    namespace, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(namespace, "overrides") or any(word.startswith("-") for word in rest)):
        hint = " (recipe fields are written KEY=VALUE)" if hasattr(namespace, "overrides") else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if rest:
        namespace.overrides = [*namespace.overrides, *rest]
    return namespace
