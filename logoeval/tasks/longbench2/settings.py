"""The settings of LongBench v2."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import OrPath
from logoeval.tasks.texts import Length

Mode = Literal["zero_shot", "cot", "no_context"]

NEW_TOKENS: dict[Mode, tuple[int, ...]] = {"zero_shot": (128,), "cot": (1024, 128), "no_context": (128,)}
"""The length caps of the replies to each question (``pred.py``), in tokens."""


class LongBench2Settings(RecipeModel):
    """LongBench v2. Its window is ``engine.max_model_len``, or else the model's."""

    data: Annotated[str, Field(min_length=1), OrPath()] = "zai-org/LongBench-v2"
    """The hub's ``data.json``, a file of the same rows (.jsonl, .parquet), a folder of such files, or the name of the
    hub data set."""
    mode: Mode = "zero_shot"
    """``zero_shot``: the choice at once. ``cot``: reasoning of up to 1,024 tokens, then the choice, without the text.
    ``no_context``: without the text, which shows what the model knows by heart."""
    max_samples: int | None = Field(default=None, gt=0)
    """Ask only the first questions; null asks all 503."""
    max_prompt_tokens: Length | None = None
    """Tokens of a prompt before the chat template; a longer one loses its middle. By default 120,000 as officially, or
    what the window leaves."""
    temperature: float = Field(default=0.0, ge=0)
    """Officially 0.1, where every run gives other numbers. The default is greedy."""
