"""Parameters of the command lines: the options that several commands share, as decorators, and types of values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from logodata.common.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from logodata.common.recipes.reading import RecipeModel

Function = TypeVar("Function", bound=Callable[..., Any])
Section = Callable[[], "type[RecipeModel]"]
"""Imports the model of a recipe section: such imports take time, and most commands end without them."""

FILE = click.Path(readable=False, path_type=Path)
PATH_OR_NAME = click.Path(readable=False)
"""Text that a shell completes as a path; it may also be the name of something on the hub."""

INPUT, OUTPUT, GENERAL = "Model and data", "Output", "General"
"""Groups of options that many commands have."""


class Option(click.Option):
    """An option, in a group of the help page. ``several`` takes all words up to the next option: ``--curve A B``."""

    def __init__(self, *arguments: Any, group: str = "Options", several: bool = False, **attributes: Any) -> None:
        super().__init__(*arguments, **{**attributes, "multiple": several})
        self.group, self.several = group, several


class Overrides(click.Argument):
    """The ``KEY=VALUE`` words of a command line, which stand anywhere among its other words.

    Words with ``=`` before any ``/`` are overrides, and a path that has one is written ``./a=b``. The parameter is
    processed before the command's other arguments, and gives them the words that are theirs.
    """

    def __init__(self, *arguments: Any, section: Section, **attributes: Any) -> None:
        super().__init__(*arguments, nargs=-1, is_eager=True, metavar="[KEY=VALUE]...", **attributes)
        self.section = section

    def handle_parse_result(self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]) -> Any:
        """Hand out the words of the command line: the overrides to this parameter, the others to the other arguments.

        Raises:
            UserError: There are more other words than arguments.
        """
        values = cast(dict[str, Any], opts)
        words: list[str] = []
        names = [parameter.name for parameter in ctx.command.params if isinstance(parameter, click.Argument)]
        for value in [values.pop(name, None) for name in names]:
            words += [value] if isinstance(value, str) else value if isinstance(value, tuple) else []
        others = [word for word in words if "=" not in word.partition("/")[0]]
        for name in names:
            if name != self.name and others:
                values[name] = others.pop(0)
        if others and not ctx.resilient_parsing:
            mend = f"write key=value; see {help_command(ctx)}"
            raise UserError(f"{others[0]!r} is not an override", where=command_name(ctx), mend=mend)
        values[self.name] = tuple(word for word in words if "=" in word.partition("/")[0])
        return super().handle_parse_result(ctx, opts, args)

    def complete_keys(self, incomplete: str) -> list[CompletionItem[str]]:
        """Return the keys of the recipe section that begin with a text."""
        from logodata.common.recipes.fields import leaves

        keys = () if "=" in incomplete else dict.fromkeys(f"{'.'.join(key)}=" for key in leaves(self.section()))
        return [CompletionItem(key) for key in keys if key.startswith(incomplete)]

    def shell_complete(self, _ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Return the keys that begin with a text. What begins none may be a file, as may the value of a key."""
        return self.complete_keys(incomplete) or [CompletionItem(incomplete, "file")]


class RecipeName(click.Path):
    """A recipe's file, or the name of one that comes with the project."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(readable=False, **attributes)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return names of shipped recipes and, for an argument, keys of overrides, which may stand there too; else
        files."""
        from logodata.common.recipes.files import recipe_names

        found = [CompletionItem(name) for name in recipe_names() if name.startswith(incomplete)]
        overrides = next((it for it in ctx.command.params if isinstance(it, Overrides)), None)
        if incomplete and overrides is not None and isinstance(param, click.Argument):
            found += overrides.complete_keys(incomplete)
        return found or [CompletionItem(incomplete, "file")]


class Choice(click.Choice[str]):
    """One of several words. The error for another word names the nearest one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return a value that is one of the words.

        Raises:
            UserError: It is none of them.
        """
        if value in self.choices:
            return str(value)
        assert param is not None
        assert ctx is not None
        mend = did_you_mean(value, self.choices, f"one of {', '.join(self.choices)}")
        raise UserError(f"{parameter_name(param)}: there is no {value!r}", where=command_name(ctx), mend=mend)


class PositiveNumber(click.ParamType[int]):
    """A whole number, at least one."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number that the digits of a value spell."""
        text = str(value)
        if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) > 0):
            self.fail(f"{text!r} is no positive number", param, ctx)
        return int(text)


class TokenCount(PositiveNumber):
    """A number of tokens, at least one: ``8192`` or ``8K``."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of tokens, which is spelt as in a recipe."""
        from logodata.common.recipes.types import token_count

        try:
            return super().convert(token_count(value), param, ctx)
        except ValueError as error:
            self.fail(str(error), param, ctx)


POSITIVE = PositiveNumber()


def option(
    spelling: str, text: str, group: str = "Options", *, name: str | None = None, **attributes: Any
) -> Callable[[Function], Function]:
    """Return a decorator that gives a command an option.

    Args:
        spelling: How the help page shows it: ``-n, --num N``. Without a metavar and without a type it is a flag.
        text: Its description.
        group: The part of the help page where it stands.
        name: The command's parameter; by default the long name.
        attributes: Attributes of :class:`Option`.
    """
    words = spelling.replace(",", " ").split()
    names = [word for word in words if word.startswith("-")] + ([name] if name else [])
    metavar = next((word for word in words if not word.startswith("-")), None)
    is_flag = True if metavar is None and "type" not in attributes else None
    return click.option(*names, cls=Option, metavar=metavar, is_flag=is_flag, group=group, help=text, **attributes)


def early_flag(
    spelling: str, text: str, group: str, act: Callable[[click.Context, click.Parameter], None]
) -> Callable[[Function], Function]:
    """Return a decorator for a flag that is obeyed before the rest of the line is read, whatever that lacks."""

    def callback(ctx: click.Context, parameter: click.Parameter, given: bool) -> None:
        if given and not ctx.resilient_parsing:
            act(ctx, parameter)

    return option(spelling, text, group, is_eager=True, expose_value=False, callback=callback)


def output_option(text: str, metavar: str = "DIR", *, required: bool = False) -> Callable[[Function], Function]:
    """Return the option ``-o``: the file or folder that the command writes."""
    spelling = f"-o, --output, --out {metavar}"
    return option(spelling, text, OUTPUT, name="output", type=FILE, required=required)


def model_option(
    text: str = "folder, hub name or 'embedded'; same as model=NAME", *, required: bool = False
) -> Callable[[Function], Function]:
    """Return the option ``--model``: a folder or a name."""
    return option("--model NAME", text, INPUT, type=PATH_OR_NAME, required=required)


def data_option(text: str, metavar: str = "DIR") -> Callable[[Function], Function]:
    """Return the option ``--data``: a file, a folder or a name."""
    return option(f"--data {metavar}", text, INPUT, type=PATH_OR_NAME)


def dtype_option(text: str, group: str) -> Callable[[Function], Function]:
    """Return the option ``--dtype``: the dtype of weights (:data:`logodata.models.loading.DType`)."""
    return option("--dtype", text, group, type=Choice(("float32", "bfloat16", "float16")))


def dry_run_option(text: str = "print the resolved recipe and touch nothing") -> Callable[[Function], Function]:
    """Return the flag ``--dry-run``: the command prints what it would do."""
    return option("--dry-run", text, OUTPUT)


def json_option(text: str = "print the statistics as JSON, and nothing else") -> Callable[[Function], Function]:
    """Return the flag ``--json``: the command writes for programs that read its output."""
    return option("--json", text, OUTPUT, name="as_json")


def overrides_argument(section: Section, example: str) -> Callable[[Function], Function]:
    """Return a decorator for ``[KEY=VALUE]...`` anywhere on the line, and for ``--schema``, which prints the keys."""

    def print_schema(ctx: click.Context, _parameter: click.Parameter) -> None:
        print(json.dumps(section().model_json_schema(), indent=2))
        ctx.exit()

    def decorate(function: Function) -> Function:
        schema = early_flag(
            "--schema", "print every recipe field, with what it means, as JSON schema", OUTPUT, print_schema
        )
        text = f"recipe fields to override, e.g. {example}"
        return click.argument("overrides", cls=Overrides, section=section, help=text)(schema(function))

    return decorate


def recipe_argument(default: str) -> Callable[[Function], Function]:
    """Return a decorator for ``[RECIPE]``, which may also be given as ``--recipe RECIPE``. The command gets one
    parameter ``recipe``."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def command(*, recipe: Path | None, recipe_option: Path | None, **others: Any) -> Any:
            if recipe is not None and recipe_option is not None:
                raise UserError("two recipes given", where=f"{recipe}, {recipe_option}", mend="give one of them")
            return function(recipe=recipe_option if recipe is None else recipe, **others)

        file = RecipeName(path_type=Path)
        named = option("--recipe RECIPE", "same as the argument RECIPE", INPUT, name="recipe_option", type=file)
        text = f"a recipe: a file, or the name of one that comes with the project ({default})"
        return cast(Function, click.argument("recipe", type=file, required=False, help=text)(named(command)))

    return decorate


def command_name(ctx: click.Context) -> str:
    """Return the command's name; empty on the level of the program."""
    return ctx.command_path.partition(" ")[2]


def help_command(ctx: click.Context) -> str:
    """Return the command line that shows the command's help page."""
    return f"{ctx.command_path} --help"


def parameter_name(parameter: click.Parameter) -> str:
    """Return the name by which a user knows a parameter."""
    return max(parameter.opts, key=len) if isinstance(parameter, click.Option) else parameter.human_readable_name
