"""The command lines of the three programs: help, typos, overrides, exit codes, completion, what -q and -v say."""

from __future__ import annotations

import errno
import importlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from logodata.cli import program as logodata
from logodata.common import verbosity
from logodata.common.command_line import Command, Program, run_program
from logodata.common.console import Tracker, note, progress, result, show
from logodata.common.errors import UserError, run_command
from logodata.common.options import Option, dtype_option, option
from logodata.common.recipes.files import recipe_names
from logodata.models.loading import DType
from logoeval.cli import program as logoeval
from logotrain.cli import program as logotrain
from study.__main__ import program as study

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS: dict[str, Program] = {
    str(program.name): program for program in (logodata, logotrain, logoeval) if isinstance(program, Program)
}
COMMANDS = [f"{program} {command}" for program in PROGRAMS for command in PROGRAMS[program].commands]


def say(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    name, *words = shlex.split(line)
    code = run_program(PROGRAMS[name], words)
    said = capsys.readouterr()
    return code, said.out, said.err


def parsed(line: str) -> dict[str, Any]:
    """The parameters that a command gets."""
    program, name, *words = shlex.split(line)
    command = PROGRAMS[program].commands[name]
    with PROGRAMS[program].make_context(program, [name]) as context:
        return command.make_context(name, words, parent=context).params


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


# Help


def test_all_programs_are_clicks() -> None:
    assert set(PROGRAMS) == {"logodata", "logotrain", "logoeval"}
    for package in (*PROGRAMS, "study"):
        for path in (ROOT / package).rglob("*.py"):
            assert "argparse" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("line", [*COMMANDS, *PROGRAMS])
def test_help_names_every_option_in_a_group(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, page, _ = say(capsys, f"{line} -h")
    assert code == 0
    assert say(capsys, f"{line} --help") == (0, page, "")
    program, _, name = line.partition(" ")
    command = PROGRAMS[program].commands[name] if name else PROGRAMS[program]
    for parameter in command.params:
        assert isinstance(parameter, Option | click.Argument)
        assert parameter.help, parameter.name
        assert re.sub(r"\W", "", parameter.help) in re.sub(r"\W", "", page)
        for spelling in parameter.opts if isinstance(parameter, Option) else (parameter.human_readable_name,):
            assert re.search(rf"(?m)^  .*{re.escape(spelling)}", page), spelling
        if isinstance(parameter, Option):
            assert f"\n{parameter.group}:\n" in page
    for other in getattr(command, "commands", {}):
        assert re.search(rf"(?m)^  {other}  +\w", page), other
    assert {"-q", "-v"} < {spelling for parameter in command.params for spelling in parameter.opts}


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_has_an_example_that_it_takes(line: str) -> None:
    program, name = line.split()
    command = PROGRAMS[program].commands[name]
    assert isinstance(command, Command)
    examples = command.examples.splitlines()
    assert examples
    for example in examples:
        assert example.startswith(f"{line} ")
        parsed(example)


def test_examples_of_a_program_are_ones_that_its_commands_take() -> None:
    for program in PROGRAMS.values():
        for example in program.examples.splitlines():
            if example.startswith(f"{program.name} "):
                parsed(example)


def test_the_study_is_a_command_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(study, ["--help"]) == 0
    assert "python -m study cpu" in capsys.readouterr().out
    assert run_program(study, ["cpo"]) == 2
    assert capsys.readouterr().err == "study: error: SCALE: there is no 'cpo' (did you mean 'cpu'?)\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    for name in PROGRAMS:
        assert say(capsys, f"{name} --version") == (0, "logo-align 0.1.0\n", "")


def test_the_installed_programs_are_those_that_python_runs() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in PROGRAMS:
        assert f'{name} = "{name}.__main__:main"' in text
        assert callable(importlib.import_module(f"{name}.__main__").main)


# What is wrong with a line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("logodata biuld", "no command 'biuld' (did you mean 'build'?)"),
        ("logotrain pln", "no command 'pln' (did you mean 'plan'?)"),
        (
            "logoeval zzz",
            "no command 'zzz' (one of longbench, longbench2, niah, ruler, qa, pairs, ppl, short, run, rounds, score, "
            "errors, compare)",
        ),
        ("logodata", "missing command (see logodata --help)"),
        ("logodata -q", "missing command (see logodata --help)"),
        ("logotrain run --max-step 2", "run: no option '--max-step' (did you mean '--max-steps'?)"),
        ("logodata build x --modle m", "build: no option '--modle' (did you mean '--model'?)"),
        ("logoeval score x --dta d", "score: no option '--dta' (see logoeval score --help)"),
        (
            "logotrain run --lr 1",
            "run: no option '--lr' (recipe fields are written KEY=VALUE; see logotrain run --help)",
        ),
        ("logotrain run -x", "run: no option '-x' (recipe fields are written KEY=VALUE; see logotrain run --help)"),
        ("logodata --model m build", "no option '--model' (a command's options follow its name; see logodata --help)"),
        ("logodata stats d --dtype flot16", "stats: --dtype: there is no 'flot16' (did you mean 'float16'?)"),
        ("logodata build d --executor x", "build: --executor: there is no 'x' (one of local, ray)"),
        ("logodata merge d", "merge: --output is missing (folder of the data set)"),
        ("logotrain merge", "merge: ADAPTER is missing (folder of the adapter, such as RUN/final)"),
        ("logodata questions a=b -o x --model m", "questions: CORPUS is missing (folder or file of documents, "),
        ("logotrain plan --gpus 0", "plan: --gpus: '0' is no positive number (see logotrain plan --help)"),
        ("logotrain plan --gpus 1.5", "plan: --gpus: '1.5' is no positive number (see"),
        (f"logotrain plan --gpus {'9' * 5000}", "plan: --gpus: '9999"),
        ("logotrain plan --prompt-tokens 8X", "plan: --prompt-tokens: not a number of tokens: write 131072, or 128K"),
        ("logotrain plan --card", "plan: option '--card' requires an argument (see logotrain plan --help)"),
        ("logodata inspect d --num=many", "inspect: --num: 'many' is no positive number"),
        ("logodata inspect d e", "inspect: got unexpected extra argument (e) (see logodata inspect --help)"),
        ("logodata build --json=x", "build: option '--json' does not take a value (see logodata build --help)"),
        ("logoeval niah a b", "niah: 'b' is not an override (write key=value; see logoeval niah --help)"),
        ("logoeval niah embedded --recipe qwen3", "embedded, qwen3: two recipes given (give one of them)"),
        ("logodata build embedded --recipe qwen3", "embedded, qwen3: two recipes given (with --recipe, SOURCE is a"),
        (
            "logodata build d --shard= --model m",
            "build: --shard= has no value (a variable of the shell may not be set)",
        ),
        ("logodata -q build -v", "build: --quiet and --verbose exclude each other (give one of them)"),
        ("logodata -qv", "--quiet and --verbose exclude each other (give one of them)"),
    ],
)
def test_what_is_wrong_with_a_line_is_one_line(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = say(capsys, line)
    name = line.split()[0]
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"{name}: error: {said}")


@pytest.mark.parametrize(
    ("words", "before"),
    [
        (["build", "", "--model", "m"], "build"),
        (["build", "d.jsonl", "--shard", ""], "--shard"),
        (["merge", "a", "", "-o", "b"], "a"),
        (["merge", "a", "-o", ""], "-o"),
        (["inspect", "--", ""], "--"),
    ],
)
def test_an_empty_word_is_not_guessed_about(words: list[str], before: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(PROGRAMS["logodata"], words) == 2
    assert f"{words[0]}: the word after {before!r} is empty (a variable" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "logodata build {} --model embedded --dry-run",
        "logodata build {} --dry-run",
        "logodata build d.jsonl --model {} -o out",
        "logodata inspect {}",
        "logodata merge {} -o out",
        "logotrain run {} --model embedded",
        "logotrain merge {} --model embedded -o out",
        "logoeval score {}",
        "logoeval errors {}",
        "logoeval qa --model embedded --adapter {} --data d -o out",
    ],
)
@pytest.mark.parametrize("fault", ["File name too long", "Permission denied"])
def test_a_path_that_cannot_be_looked_at(
    line: str, fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "x" * 300 if fault == "File name too long" else "closed"
    look = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if os.fspath(path) == "closed" or str(path).startswith("closed/"):  # root may enter every folder
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return look(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    code, _, err = say(capsys, line.format(name))
    assert code == 2
    assert re.search(rf"^\w+: error: .*{name}.*: .*{fault} \(.+\)$", err.splitlines()[-1])


def test_all_choices_are_those_of_the_code() -> None:
    @dtype_option("of weights", "Options")
    def command() -> None: ...

    (parameter,) = command.__click_params__  # type: ignore[attr-defined]
    assert tuple(parameter.type.choices) == get_args(DType)


# Words of a line


@pytest.mark.parametrize(
    ("command", "parts", "expected"),
    [
        (
            "logotrain run",
            ["llama3-80k", "optimizer.lr=2e-5", "--data a=b", "epochs=1", "-o out"],
            {"recipe": Path("llama3-80k"), "data": "a=b", "output": Path("out")},
        ),
        (
            "logodata build",
            ["./a=b.jsonl", "seed=1", "--model x=y", "chunking.chunk_tokens=5", "--json"],
            {"source": "./a=b.jsonl", "model": "x=y", "as_json": True},
        ),
        (
            "logoeval niah",
            ["niah.lengths=[1,2]", "--recipe embedded", "seed=1", "--retrieval", "-o a=b"],
            {"recipe_option": Path("embedded"), "recipe": None, "option_0": True, "output": Path("a=b")},
        ),
        (
            "logodata questions",
            ["books", "a=1", "--model m", "b.c=/x", "-o q.jsonl"],
            {"corpus": "books", "model": "m"},
        ),
    ],
)
def test_overrides_stand_anywhere_among_the_words(command: str, parts: Sequence[str], expected: dict[str, Any]) -> None:
    keys = [part for part in parts if "=" in part and part[0] not in "-."]
    for order in itertools.permutations(parts):
        found = parsed(f"{command} {' '.join(order)}")
        assert {key: found[key] for key in expected} == expected
        assert found["overrides"] == tuple(sorted(keys, key=order.index))


def test_words_after_two_dashes_are_no_options() -> None:
    found = parsed("logotrain run -o out -- -odd a=1")
    assert (found["recipe"], found["overrides"]) == (Path("-odd"), ("a=1",))


@pytest.mark.parametrize(
    ("words", "runs", "curves"),
    [
        ("a b --curve c d -o r.html", ("a", "b"), ("c", "d")),
        ("a --curve c d -o r.html b", ("a", "b"), ("c", "d")),
        ("--curve x=c --curve d -o r.html a b", ("a", "b"), ("x=c", "d")),
        ("--curve=c a -o r.html", ("a",), ("c",)),
        ("a -o r.html", ("a",), ()),
    ],
)
def test_several_words_after_one_option(words: str, runs: tuple[str, ...], curves: tuple[str, ...]) -> None:
    found = parsed(f"logoeval compare {words}")
    assert (found["runs"], found["curve"], found["output"]) == (runs, curves, Path("r.html"))


def test_the_output_has_one_name_everywhere() -> None:
    for line in ("logodata merge d", "logotrain run", "logoeval niah", "logoeval compare a b"):
        for name in ("-o", "--output", "--out"):
            assert parsed(f"{line} {name} there")["output"] == Path("there")


@pytest.mark.parametrize("line", ["logodata build", "logotrain run", "logoeval run"])
def test_a_recipe_is_a_word_or_an_option(line: str, capsys: pytest.CaptureFixture[str], tiny_model_dir: Path) -> None:
    rest = f"--model {tiny_model_dir} --dry-run"
    if line == "logotrain run":
        rest += " positions.target_length=2048"
    if line == "logoeval run":
        rest += " --data d"
    code, out, _ = say(capsys, f"{line} embedded {rest}")
    assert (code, out.count(str(tiny_model_dir))) == (0, 1)
    assert say(capsys, f"{line} --recipe embedded {rest}")[:2] == (0, out)


def test_max_steps_is_an_option(capsys: pytest.CaptureFixture[str], tiny_model_dir: Path) -> None:
    rest = f"--model {tiny_model_dir} --dry-run data.path=null epochs=0"
    code, out, _ = say(capsys, f"logotrain run {rest} --max-steps 7")
    assert code == 0
    assert "  max_steps: 7\n" in out
    assert say(capsys, f"logotrain run {rest} max_steps=7")[1] == out


# What is said


def test_quiet_says_results_and_errors_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGO_PROGRESS", "plain")

    def speak() -> None:
        note("a note")
        show("a table")
        with progress("work", 1) as tracker:
            assert (type(tracker) is Tracker) == (verbosity.level == "quiet")
            tracker.advance()
        result("a result")

    program = Program("logodata", params=[])
    program.command("speak")(speak)
    told = {}
    for line in ("speak", "-q speak", "speak --quiet", "-v speak", "speak -v"):
        assert run_program(program, line.split()) == 0
        assert verbosity.level == "normal"
        said = capsys.readouterr()
        told[line] = said.err
        assert said.out == "a result\n"
    assert "a note\na table\n[work] 1/1" in told["speak"]
    assert told["speak"] == told["-v speak"] == told["speak -v"]
    assert told["-q speak"] == told["speak --quiet"] == ""


@pytest.mark.parametrize("place", ["before", "after"])
def test_all_programs_know_quiet_and_verbose(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (
        "logodata build embedded --model ./nowhere -o out",
        "logotrain run embedded --model ./nowhere -o out data.path=null epochs=0",
        "logoeval niah embedded --model ./nowhere -o out",
    ):
        program, command, rest = line.split(" ", 2)

        def lines(flag: str, program: str = program, command: str = command, rest: str = rest) -> list[str]:
            words = f"{flag} {command}" if place == "before" else f"{command} {flag}"
            code, out, err = say(capsys, f"{program} {words} {rest}")
            assert (code, out) == (2, "")
            return err.splitlines()

        usual = lines("")
        assert usual[0].startswith("warning: ")
        assert usual[-1].startswith(f"{program}: error: ./nowhere: no such model folder")
        assert lines("-q") == usual[-1:]
        verbose = lines("-v")
        assert "Traceback (most recent call last):" in verbose
        assert verbose[-1] == usual[-1]


QUIET = """
import sys
from logotrain.cli import main
for line in ("plan -q --card cpu --gpus 1", "run -q --dry-run", "run -q -o out"):
    assert main([*line.split(), *sys.argv[1:]]) == 0, line
"""


def test_quiet_silences_what_libraries_say_when_they_are_imported(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Each command imports more than the one before."""
    words = ["--model", str(tiny_model_dir), "epochs=0", "positions.target_length=2048"]
    done = subprocess.run(
        [sys.executable, "-c", QUIET, *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_verbose_shows_what_an_error_came_of_but_no_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        try:
            raise OSError("http://me:secret@host/v1 refused \x1b[31m")
        except OSError as error:
            raise UserError("no answer") from error

    for level in get_args(verbosity.Level):
        verbosity.level = level
        assert run_command("logodata", fail) == 2
        said = capsys.readouterr().err
        assert ("OSError: http://***@host/v1 refused ␛[31m" in said) == (level == "verbose")
        assert said.splitlines()[-1] == "logodata: error: no answer"
    verbosity.level = "normal"
    code, _, err = say(capsys, "logodata -v build x.jsonl --model m engine.kind=openai 'engine.api_key_env=sk CANARY'")
    assert code == 2
    assert "ValidationError" in err
    assert "CANARY" not in err


def test_libraries_speak_where_they_are_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging

    from logodata.common.verbosity import quiet_transformers

    before = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        monkeypatch.setattr(verbosity, "level", "verbose")
        quiet_transformers()
        assert logging.get_verbosity() == logging.INFO
        monkeypatch.setattr(verbosity, "level", "normal")
        quiet_transformers()
        assert logging.get_verbosity() == logging.ERROR
    finally:
        logging.set_verbosity(before)


# How a process ends


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("words", "code", "lines"),
    [("--help", 0, 0), ("--version", 0, 0), ("", 2, 1), ("nonsense", 2, 1), ("run -x", 2, 1)],
)
def test_exit_codes(program: str, words: str, code: int, lines: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", program, *words.split()], capture_output=True, text=True, check=False, env=environment()
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, lines), done.stderr
    assert bool(done.stdout) == (code == 0)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("how", ["reader left", "closed"])
def test_help_and_errors_that_nobody_reads(program: str, how: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for words, code in ((["--help"], 0), (["run", "--help"], 0 if program != "logodata" else 2), (["nonsense"], 2)):
        close: Callable[[], None] = lambda: os.close(1)  # noqa: E731
        done = subprocess.run(
            [sys.executable, "-m", program, *words],
            check=False,
            stderr=subprocess.PIPE,
            env=environment(),
            **({"stdout": writing} if how == "reader left" else {"preexec_fn": close}),  # type: ignore[call-overload]
        )
        assert done.returncode == code
        assert done.stderr.count(b"\n") == (code == 2)
    os.close(writing)


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs without it
module, number, program, *words = sys.argv[1:]

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))

sys.meta_path.insert(0, Finder())
sys.argv[1:] = words
from importlib import import_module
sys.exit(import_module(f"{program}.__main__").main())
"""


IMPORTED = [
    ("logodata build embedded --dry-run", "logodata.cli"),
    ("logodata build embedded --dry-run", "click"),
    ("logodata build embedded --dry-run", "click.parser"),
    ("logodata build embedded --dry-run", "logodata.recipe.settings"),
    ("logodata build embedded --dry-run", "pydantic_core"),
    ("logodata build embedded --dry-run", "yaml"),
    ("logotrain run embedded --dry-run", "logotrain.cli"),
    ("logotrain run embedded --dry-run", "logotrain.recipe.settings"),
    ("logotrain run embedded --dry-run", "rich.console"),
    ("logotrain run embedded --dry-run", "torch"),
    ("logoeval niah embedded --dry-run", "logoeval.cli"),
    ("logoeval niah embedded --dry-run", "logoeval.recipe.settings"),
    ("logoeval niah embedded --dry-run", "yaml"),
]


@pytest.mark.parametrize(
    ("line", "module", "number"),
    [
        *((f"{program} --help", "logodata.common.errors", 2) for program in PROGRAMS),
        *((f"{program} --help", "logodata.common.streams", number) for program in PROGRAMS for number in (2, 15)),
        *((line, module, number) for line, module in IMPORTED for number in (2, 15)),
    ],
)
def test_an_interrupt_while_modules_are_imported(line: str, module: str, number: int) -> None:
    program, *words = line.split()
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, str(number), program, *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    said = done.stderr.splitlines()[-1:]
    assert said == [f"{program}: interrupted; run the same command again to continue"], done.stderr
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


ENDING = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import logodata.cli
from logodata.common.start import start
when, number, code = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

class Teardown:
    def __del__(self, kill=os.kill, me=os.getpid(), number=number):
        kill(me, number)

def wait():
    time.sleep(0.2)
    os.kill(os.getpid(), number)
    time.sleep(60)

def main():
    if when == "threads":
        threading.Thread(target=wait).start()
    else:
        sys.kept = Teardown()
    if code == 130:
        raise KeyboardInterrupt
    return code

from logodata.common.errors import run_command
logodata.cli.main = lambda: run_command("logodata", main)
sys.exit(start("logodata"))
"""


WAITING = """
import os
import logodata.cli
from logodata.common.start import start
logodata.cli.main = lambda: print(os.environ.get("GOMP_SPINCOUNT")) or 0
start("logodata")
"""


@pytest.mark.parametrize(
    ("given", "found"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_sleep_soon_while_they_wait_unless_the_user_says_how(given: dict[str, str], found: str) -> None:
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", WAITING]
    done = subprocess.run(command, env={**own, **given}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found, done.stderr


@pytest.mark.parametrize("when", ["threads", "teardown"])
@pytest.mark.parametrize("number", [2, 15])
@pytest.mark.parametrize("code", [0, 130])
def test_a_signal_while_python_ends_changes_no_exit_code(when: str, number: int, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING, when, str(number), str(code)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=50,
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, int(code == 130)), done.stderr


# Completion


def complete(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is told for a line; its last word is the one to complete."""
    program = line.split()[0]
    with monkeypatch.context() as patch:
        patch.setenv(f"_{program.upper()}_COMPLETE", "bash_complete")
        # Bash takes = for a word of its own.
        patch.setenv("COMP_WORDS", words := re.sub("=", " = ", line))
        patch.setenv(
            "COMP_CWORD", str(len(words.split(" ")) - 1 if not words.endswith("= ") else len(words.split()) - 1)
        )
        assert run_program(PROGRAMS[program], []) == 0
    return [found.removeprefix("plain,") for found in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("logodata bu", ["build"]),
        ("logotrain ", ["run", "plan", "merge"]),
        ("logotrain run --ma", ["--max-steps"]),
        ("logotrain run --recipe embed", ["embedded"]),
        ("logotrain run llama3-80k-sft-f", ["llama3-80k-sft-full"]),
        ("logotrain run epochs=1 llama3-80k-sft-f", ["llama3-80k-sft-full"]),
        ("logotrain run optimizer.l", ["optimizer.lr="]),
        ("logotrain run llama3-80k --data d optimizer.l", ["optimizer.lr="]),
        ("logotrain run llama3-80k epochs=1 optimizer.l", ["optimizer.lr="]),
        ("logotrain run llama3-80k data.path=", ["file,data.path="]),
        ("logotrain run llama3-80k data.path=ru", ["file,data.path=ru"]),
        ("logotrain run ./my", ["file,./my"]),
        ("logodata questions books questions_per", ["questions_per_document="]),
        ("logodata export d --format tr", ["trl", "trl-exploded"]),
        ("logodata export d --format=tr", ["trl", "trl-exploded"]),
        ("logodata stats runs/d", ["file,runs/d"]),
        ("logoeval niah niah.var", ["niah.variant="]),
        ("logoeval niah embedded --adapter runs/l", ["file,runs/l"]),
    ],
)
def test_completion(
    line: str, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complete(line, capsys, monkeypatch) == expected


def test_completion_knows_all_recipes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ("logodata build ", "logotrain plan ", "logoeval run ", "logoeval qa --recipe "):
        assert complete(line, capsys, monkeypatch) == recipe_names()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_for_shells(shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, program in PROGRAMS.items():
        monkeypatch.setenv(f"_{name.upper()}_COMPLETE", f"{shell}_source")
        assert run_program(program, []) == 0
        script = capsys.readouterr().out
        assert f"_{name.upper()}_COMPLETE={shell}_complete" in script
        assert ("compopt -o nospace" in script) == (shell == "bash")


@pytest.mark.parametrize("instruction", ["nonsense", "tcsh_source", "bash_complete", "fish_complete"])
def test_a_completion_that_no_shell_asked_for(
    instruction: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_LOGODATA_COMPLETE", instruction)
    monkeypatch.setenv("COMP_CWORD", "x")
    assert run_program(PROGRAMS["logodata"], []) == 2
    said = f"logodata: error: _LOGODATA_COMPLETE: cannot complete for {instruction!r} (write bash_source, "
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(tmp_path: Path) -> None:
    (tmp_path / "logotrain").write_text(f'#!/bin/sh\nexec {sys.executable} -m logotrain "$@"\n')
    (tmp_path / "logotrain").chmod(0o755)
    script = """
        compopt() { echo compopt "$@"; }
        eval "$(_LOGOTRAIN_COMPLETE=bash_source logotrain)"
        COMP_WORDS=(logotrain run llama3-80k epochs = 1 optimizer.l) COMP_CWORD=6
        _logotrain_completion logotrain
        echo "${COMPREPLY[@]}"
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, env=environment(PATH=path)
    )
    assert done.stdout == "compopt -o nospace\noptimizer.lr=\n"


def test_an_option_without_metavar_is_a_flag() -> None:
    @click.command(cls=Command)
    @option("-a, --all", "all of them")
    @option("-n, --num N", "how many", type=int)
    def command(**_: Any) -> None: ...

    assert command.make_context("x", ["-a", "-n", "3"]).params == {"all": True, "num": 3}
