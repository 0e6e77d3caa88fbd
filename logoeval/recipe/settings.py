"""The ``eval`` section of a recipe: which model is measured, on what. A task without settings is not part of
``logoeval run``."""

from __future__ import annotations

from logoeval.recipe.foreign_names import NAMES, VALUES
from logoeval.session import SessionSettings
from logoeval.tasks.longbench.settings import LongBenchSettings
from logoeval.tasks.needles.settings import NiahSettings
from logoeval.tasks.pairs import PairsSettings
from logoeval.tasks.perplexity import PerplexitySettings
from logoeval.tasks.qa import QaSettings
from logoeval.tasks.short.settings import ShortSettings


class EvalRecipe(SessionSettings):
    """One evaluation of one model. Two recipes that differ in ``model`` and ``adapter`` only can be compared."""

    own_model = "logoeval TASK --model MODEL, without a recipe, takes the task's own"
    foreign_names = NAMES
    foreign_values = VALUES

    longbench: LongBenchSettings | None = None
    """LongBench."""
    niah: NiahSettings | None = None
    """Needle in a haystack."""
    ppl: PerplexitySettings | None = None
    """Perplexity."""
    qa: QaSettings | None = None
    """Questions on held-out documents."""
    pairs: PairsSettings | None = None
    """Held-out preference pairs."""
    short: ShortSettings | None = None
    """Short-context benchmarks."""
