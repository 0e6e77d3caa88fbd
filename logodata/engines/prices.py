"""What a server's tokens cost, by a table of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from logodata.common.errors import UserError, did_you_mean, first_line
from logodata.common.user_files import read_text
from logodata.engines import GenerationRequest, Usage

if TYPE_CHECKING:
    from logodata.engines.settings import EngineSettings

_MOST_BYTES = 2**26
_MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices of a million prompt tokens, and of a million response tokens."""

    prompt: float
    response: float

    def of(self, usage: Usage) -> float:
        """Return what these tokens cost."""
        return (usage.prompt_tokens * self.prompt + usage.response_tokens * self.response) / _MILLION


def read_prices(path: Path, model: str) -> Prices:
    """Return the prices of a model in a table: ``{NAME: {prompt: 3.0, response: 15.0}}``, or LiteLLM's, which has the
    prices of one token.

    Raises:
        UserError: The file is no such table, or has no prices of this model.
    """
    mend = "write for each model:  NAME: {prompt: 3.0, response: 15.0}"
    text = read_text(path, most_bytes=_MOST_BYTES, mend=mend)
    try:
        table = _parse(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"not YAML or JSON: {first_line(error)}", where=str(path), mend=mend) from error
    if not isinstance(table, dict):
        raise UserError("not a table of prices", where=str(path), mend=mend)
    row = table.get(model)
    if row is None:
        hint = did_you_mean(model, [name for name in table if isinstance(name, str)], mend)
        raise UserError(f"no prices of {model!r}", where=str(path), mend=hint)
    for names, unit in ((("prompt", "response"), 1.0), (("input_cost_per_token", "output_cost_per_token"), _MILLION)):
        found: list[Any] = [row.get(name) for name in names] if isinstance(row, dict) else []
        values = [value * unit for value in found if type(value) in (int, float) and 0 <= value < float("inf")]
        if len(values) == len(names):
            return Prices(*values)
    raise UserError(f"the prices of {model!r} are not two numbers", where=str(path), mend=mend)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)  # first, because YAML takes JSON's 3e-06 for a text
    except ValueError:
        return yaml.safe_load(text)


def find_prices(settings: EngineSettings, model: str) -> Prices | None:
    """Return the prices of the model that a chat server answers with; None if no table is given."""
    return (
        None
        if settings.prices is None or settings.kind != "chat"
        else read_prices(settings.prices, settings.served_model or model)
    )


class Counted(Protocol):
    """A response, as far as a server counted it."""

    @property
    def usage(self) -> Usage | None: ...

    @property
    def withheld(self) -> bool | None: ...


def describe_servers(responses: Iterable[Counted], prices: Prices | None) -> Iterator[str]:
    """Yield in words the tokens that a chat server has counted for responses, with what they cost, and how many
    responses it withheld."""
    prompt = response = number = num_counted = num_withheld = 0
    for one in responses:
        number, num_withheld = number + 1, num_withheld + bool(one.withheld)
        if one.usage is not None:
            num_counted += 1
            prompt, response = prompt + one.usage.prompt_tokens, response + one.usage.response_tokens
    if num_counted:
        cost = "" if prices is None else f", {prices.of(Usage(prompt, response)):,.4g} at the given prices"
        yield f"{prompt:,} prompt and {response:,} response tokens by the server's count{cost}"
    if num_withheld:
        yield f"{num_withheld:,} of {number:,} replies were withheld by the server or its filter; what it said counts"


def describe_estimate(requests: Iterable[GenerationRequest], prices: Prices) -> str:
    """Return in words what requests may cost. Prompts are counted by the tokenizer here, and servers have others."""
    sizes = [(len(request.prompt_ids), request.sampling.max_new_tokens) for request in requests]
    most = Usage(sum(prompt for prompt, _ in sizes), sum(new for _, new in sizes))
    return (
        f"{len(sizes):,} prompts of {most.prompt_tokens:,} tokens by the tokenizer here, and at most "
        f"{most.response_tokens:,} tokens of responses: at most about {prices.of(most):,.4g}"
    )
