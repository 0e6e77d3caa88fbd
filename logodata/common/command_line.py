"""Add to click what the command lines of all three programs have in common.

A :class:`Program` has commands of type :class:`Command`, and :func:`run_program` runs it. Modules that take long to
import are imported inside the commands, so that ``--help`` and shell completion answer at once.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from inspect import cleandoc
from itertools import pairwise
from typing import Any, cast

import click

from logodata import __version__
from logodata.common import verbosity
from logodata.common.errors import UserError, run_command
from logodata.common.options import (
    GENERAL,
    OUTPUT,
    Option,
    Overrides,
    command_name,
    early_flag,
    help_command,
    parameter_name,
)


class Command(click.Command):
    """A command with ``-q`` and ``-v``, whose help has the options in groups, and examples at the end."""

    def __init__(self, *arguments: Any, examples: str = "", **attributes: Any) -> None:
        usual = {"context_settings": {"max_content_width": 100}, "add_help_option": False}
        super().__init__(*arguments, **{**usual, **attributes})
        self.examples = cleandoc(examples)
        for spelling, text, act in (
            ("-q, --quiet", "show no progress and no notes; results and errors remain", _set_level),
            ("-v, --verbose", "show the notes of libraries too, and where an error comes from", _set_level),
            ("-h, --help", "show this page and exit", _show_help),
        ):
            early_flag(spelling, text, GENERAL, act)(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat an option that takes several words before each of them: click's options take one at a time.

        Raises:
            UserError: A word, or the value of an option, is empty: as a path it would be the current folder.
        """
        several = [name for it in self.params if isinstance(it, Option) and it.several for name in it.opts]
        words: list[str] = []
        current = None
        for before, word in pairwise([str(ctx.info_name), *args]):
            is_empty = not word or (word.startswith("--") and word.endswith("="))
            if is_empty and not isinstance(self, click.Group) and not ctx.resilient_parsing:
                what = f"{word} has no value" if word else f"the word after {before!r} is empty"
                raise UserError(what, where=command_name(ctx), mend="a variable of the shell may not be set")
            if word.startswith("-") and len(word) > 1:
                current = word if word in several else None
            elif current is not None and words[-1] != current:
                words.append(current)
            words.append(word)
        try:
            return super().parse_args(ctx, words)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def get_short_help_str(self, _limit: int = 0) -> str:
        """Return the first sentence of the help."""
        return cleandoc(self.help or "").partition(".\n")[0].partition(". ")[0].removesuffix(".").replace("\n", " ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands of a program, then the options by their groups."""
        if isinstance(self, click.Group):
            self.format_commands(ctx, formatter)
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if isinstance(option, click.Option) and record is not None:
                groups.setdefault(getattr(option, "group", GENERAL), []).append(record)
        for name in sorted(groups, key=lambda name: (name == GENERAL, name == OUTPUT)):
            with formatter.section(name):
                formatter.write_dl(groups[name])

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, line by line as they are."""
        if self.examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}".rstrip() + "\n" for line in self.examples.splitlines()))


class Program(Command, click.Group):
    """A program, whose commands stand in the order in which they are defined."""

    command_class = Command

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **{"no_args_is_help": False, **attributes})
        early_flag("--version", "show the version and exit", GENERAL, _show_version)(self)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)


def run_program(program: click.Command, argv: Sequence[str] | None = None) -> int:
    """Run a command line, or answer a shell that completes one.

    ``argv`` holds the words after the program's name; None takes those of the process.

    Returns:
        The exit code (see :func:`logodata.common.errors.run_command`).
    """
    name, words = str(program.name), list(sys.argv[1:] if argv is None else argv)
    try:
        return run_command(name, lambda: _invoke(program, name, words))
    finally:
        verbosity.level = "normal"


def _invoke(program: click.Command, name: str, argv: list[str]) -> int:
    # click's own ``main`` is not called: it makes an interrupt an exit code 1, and a pipe that closed an error.
    variable = f"_{name.upper()}_COMPLETE"
    try:
        if instruction := os.environ.get(variable):
            return _complete(program, name, variable, instruction)
        with program.make_context(name, argv) as context:
            program.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        raise _as_user_error(error) from None
    return 0


def print_json(values: Mapping[str, Any]) -> None:
    """Print an object as JSON on stdout."""
    from logodata.common.json_files import strict_dumps

    print(strict_dumps(values, indent=2, ascii_only=True))


def print_recipe(values: Mapping[str, Any]) -> None:
    """Print a recipe as YAML on stdout, such that it is a recipe again."""
    import yaml

    print(yaml.safe_dump(values, sort_keys=False), end="")


def _complete(program: click.Command, name: str, variable: str, instruction: str) -> int:
    from click.shell_completion import BashComplete, add_completion_class, shell_complete

    class _Bash(BashComplete):
        """Bash takes ``key=value`` for three words, and would put a space after ``key=``."""

        source_template = BashComplete.source_template.replace(
            "COMPREPLY+=($value)", "COMPREPLY+=($value); [[ $value == *= ]] && compopt -o nospace"
        )

        def get_completion_args(self) -> tuple[list[str], str]:
            args, incomplete = super().get_completion_args()
            words: list[str] = []
            for word in (*args, incomplete):
                if words and (word == "=" or words[-1].endswith("=")):
                    words[-1] += word
                else:
                    words.append(word)
            return words[:-1], words[-1]

    add_completion_class(_Bash)
    try:
        code = shell_complete(program, {}, name, variable, instruction)
    except (KeyError, ValueError):  # COMP_WORDS and COMP_CWORD, which the shell sets
        code = 1
    if code:
        mend = "write bash_source, zsh_source or fish_source, or unset it"
        raise UserError(f"cannot complete for {instruction!r}", where=variable, mend=mend)
    return 0


def _set_level(ctx: click.Context, parameter: click.Parameter) -> None:
    wanted: verbosity.Level = "quiet" if parameter.name == "quiet" else "verbose"
    if verbosity.level not in ("normal", wanted):
        mend = "give one of them"
        raise UserError("--quiet and --verbose exclude each other", where=command_name(ctx), mend=mend)
    verbosity.level = wanted


def _show_help(ctx: click.Context, _parameter: click.Parameter) -> None:
    print(ctx.get_help())
    ctx.exit()


def _show_version(ctx: click.Context, _parameter: click.Parameter) -> None:
    print(f"logo-align {__version__}")
    ctx.exit()


def _as_user_error(error: click.UsageError) -> UserError:
    """Return what click says of a command line, as one line."""
    ctx = error.ctx
    assert ctx is not None
    where, see = command_name(ctx), f"see {help_command(ctx)}"
    if isinstance(error, click.NoSuchCommand):
        commands = cast(click.Group, ctx.command).commands
        mend = f"did you mean {error.possibilities[0]!r}?" if error.possibilities else f"one of {', '.join(commands)}"
        return UserError(f"no command {error.command_name!r}", mend=mend)
    if isinstance(error, click.NoSuchOption):
        spelt = {text.lstrip("-"): text for it in ctx.command.params if isinstance(it, Option) for text in it.opts}
        # Without their dashes, in which all options are alike.
        if near := difflib.get_close_matches(error.option_name.lstrip("-"), spelt, n=1):
            mend = f"did you mean {spelt[near[0]]!r}?"
        elif isinstance(ctx.command, click.Group):
            mend = f"a command's options follow its name; {see}"
        else:
            takes_fields = any(isinstance(parameter, Overrides) for parameter in ctx.command.params)
            mend = f"recipe fields are written KEY=VALUE; {see}" if takes_fields else see
        return UserError(f"no option {error.option_name!r}", where=where, mend=mend)
    if isinstance(error, click.BadParameter) and error.param is not None:
        name = parameter_name(error.param)
        if isinstance(error, click.MissingParameter):
            return UserError(f"{name} is missing", where=where, mend=error.param.help or see)
        return UserError(f"{name}: {_said(error.message)}", where=where, mend=see)
    return UserError(_said(error.format_message()), where=where, mend=see)


def _said(message: str) -> str:
    return message[:1].lower() + message[1:].removesuffix(".")
