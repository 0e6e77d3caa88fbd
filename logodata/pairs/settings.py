"""The settings of ``logodata import``, most of which a run on pairs has too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from logodata.common.recipes.foreign import by_name
from logodata.common.recipes.reading import RecipeModel
from logodata.common.recipes.types import Encoding, OrPath, TemplateArgs, Tokens
from logodata.contract import PairFormat, PromptForm

ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "_id"),
    "prompt": ("prompt",),
    "chosen": ("chosen", "win_response", "chosen_response", "preferred"),
    "rejected": ("rejected", "lose_response", "rejected_response", "dispreferred"),
    "messages": ("conversations", "messages", "conversation"),
    "system": ("system",),
    "tools": ("tools",),
    "instruction": ("instruction", "question", "query"),
    "input": ("input",),
    "history": ("history",),
    "context": ("context", "document"),
    "question": ("query", "question", "input", "instruction"),
    "completions": ("completions", "generations"),
    "ratings": ("ratings", "scores"),
    "score_chosen": ("score_chosen", "chosen_score", "chosen_rating", "chosen-rating"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected_rating", "rejected-rating"),
}
"""The fields of a pair, each with its names in data sets that are in use."""


_NAMES = by_name(
    {
        "path": "dataset datasets dataset_name dataset_path data_path train_file train_dataset",
        "path: PATH:NAME takes a split": "split dataset_split",
        "model": "model_name model_name_or_path base_model pretrained",
        "columns.prompt": "prompt_key input_key",
        "columns.chosen": "chosen_key output_key",
        "columns.rejected": "rejected_key",
        "window: longer pairs are left out, nothing is cut": "max_length max_len max_seq_length cutoff_len",
        "chat_template": "template tokenizer_chat_template",
        ": the chat template is applied to messages; prompt=message makes one of a text": "apply_chat_template",
    }
)
"""Names that other programs have for these settings (TRL, LLaMA-Factory, OpenRLHF)."""


class PairSettings(RecipeModel):
    """How pairs are read, where that cannot be recognised."""

    format: Literal["auto"] | PairFormat = "auto"
    """The form of the rows. ``auto`` recognises it from the columns of all rows, and says what it found."""
    columns: dict[str, str] = Field(default_factory=dict)
    """The rows' own columns for our fields, e.g. ``{chosen: better, rejected: worse}``."""
    encoding: Encoding | None = None
    """The encoding of a table that is not UTF-8, such as ``cp1252``."""
    subset: str | None = None
    """The configuration of a hub data set that has several."""
    prompt: Literal["auto"] | PromptForm = "auto"
    """What a prompt of one text is. ``plain`` is text that the responses continue, as the user gave it. ``rendered`` is
    text with the chat template applied, in which control tokens are recognised. ``message`` is what a user says, to
    which the chat template is applied. ``auto`` takes ``rendered`` if every prompt ends as the template begins the
    model's turn, ``plain`` if none does."""
    group: bool = False
    """Put rows with the same prompt and preferred response together: one sample with several dis-preferred ones."""
    chunk_tokens: Tokens | None = None
    """Cut the document of a prompt (or, where no column holds one, the whole prompt) into chunks of this many tokens,
    for the paper's positions. By default nothing is cut, and training takes natural positions."""
    chat_template: Path | None = None
    """A file with the chat template to use instead of the tokenizer's own."""
    chat_template_args: TemplateArgs = Field(default_factory=dict)
    """Variables of the chat template, such as ``{enable_thinking: false}`` of Qwen3."""

    @model_validator(mode="after")
    def _columns_are_fields(self) -> PairSettings:
        unknown = [name for name in self.columns if name not in ALIASES]
        if unknown:
            raise ValueError(f"columns: {unknown[0]!r} is not a field, the fields are {', '.join(ALIASES)}")
        return self


class ImportRecipe(PairSettings):
    """How pairs are read, and for which model they become token ids."""

    foreign_names = _NAMES

    path: Annotated[str, Field(min_length=1), OrPath()]
    """The pairs: a JSON, CSV or parquet file, a folder (of ``save_to_disk``, of a data set's files, or of LLaMA-Factory
    with its ``dataset_info.json``), or a hub data set. ``PATH:NAME`` takes one split, or one of LLaMA-Factory's data
    sets."""
    model: Annotated[str, Field(min_length=1), OrPath("embedded")]
    """The model that will be trained, whose tokenizer and chat template are taken: ``embedded``, a folder, or a hub
    name."""
    window: Tokens | None = None
    """The most tokens of a prompt with a response; by default the model's window. Longer pairs are left out."""
