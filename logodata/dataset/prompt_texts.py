"""The prompts of imported pairs as text, for people: they are stored as token ids alone."""

from __future__ import annotations

from logodata.common.errors import UserError
from logodata.contract import ImportManifest, PreferenceSample
from logodata.models.loading import load_tokenizer


class PromptTexts:
    """Decodes prompts with the tokenizer of the model that the pairs were imported for. Where it cannot be loaded, the
    text of a prompt says so, since the responses can be read without it."""

    def __init__(self, manifest: ImportManifest) -> None:
        self._fault = ""
        try:
            self._tokenizer = load_tokenizer(manifest.model, needs_template=False)
        except UserError as error:
            self._fault = str(error)

    def of(self, sample: PreferenceSample) -> str:
        """Return the prompt of a sample as text, with its control tokens."""
        if self._fault:
            return f"({len(sample.prompt_ids)} tokens; the tokenizer cannot be loaded: {self._fault})"
        return str(self._tokenizer.decode(sample.prompt_ids, clean_up_tokenization_spaces=False))
