"""What the commands of ``logodata`` do with their options; modules are loaded when a command needs them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from logodata.common.errors import UserError
from logodata.common.json_files import strict_dumps

if TYPE_CHECKING:
    from logodata.build.ray_driver import RayOptions
    from logodata.contract import Stats
    from logodata.recipe.settings import BuildRecipe


def build_command(options: argparse.Namespace) -> None:
    """Make a data set, or print the recipe or its schema."""
    from logodata.common.console import console
    from logodata.recipe.settings import BuildRecipe

    if options.schema:
        from logodata.common.recipes.reading import recipe_schema

        print(recipe_schema(BuildRecipe))
        return
    from logodata.build.shards import BuildShard

    shard = BuildShard.parse(options.shard) if options.shard else None
    cluster = _ray_options(options)
    recipe = _load_recipe(options)
    if options.dry_run:
        import yaml

        section = {"build": recipe.model_dump(mode="json")}
        if options.json:
            print(strict_dumps(section, indent=2, ascii_only=True))
        else:
            console.print(yaml.safe_dump(section, sort_keys=False), markup=False, end="")
        return
    if options.output is None:
        raise UserError("no folder for the data set", mend="give -o DIR")
    from logodata.build.build import build

    _say_built(build(recipe, options.output, shard, cluster), options)


def _ray_options(options: argparse.Namespace) -> RayOptions | None:
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers {options.workers}: no engine", mend="give 1 or more, or leave it out")
    if options.executor == "ray":
        from logodata.build.ray_driver import RayOptions

        return RayOptions(options.ray_address, options.workers)
    if options.ray_address is not None or options.workers is not None:
        raise UserError("--ray-address and --workers belong to Ray", mend="add --executor ray")
    return None


def merge_command(options: argparse.Namespace) -> None:
    """Join the parts of a build."""
    from logodata.build.merge import merge

    _say_built(merge(options.parts, options.output), options)


def _say_built(stats: Stats, options: argparse.Namespace) -> None:
    from logodata.common.console import console
    from logodata.dataset.card import describe

    output: Path = options.output
    if options.json:
        print(strict_dumps({"output": str(output), **stats.to_json()}, indent=2, ascii_only=True))
        return
    files = ", ".join(
        name
        for name in ("data/", "stats.json", "rejected.jsonl", "decisions.jsonl", "README.md")
        if (output / name).exists()
    )
    console.print(f"{describe(stats)}\nwrote {output}: {files}", markup=False, soft_wrap=True)


def _load_recipe(options: argparse.Namespace) -> BuildRecipe:
    from logodata.common.recipes.files import find_recipe, shipped_recipes
    from logodata.common.recipes.reading import load_recipe
    from logodata.recipe.settings import BuildRecipe

    if options.source is None:
        raise UserError("no source given", mend="give a recipe.yaml or a file documents.jsonl")
    overrides = list(options.overrides)
    if options.model:
        overrides.insert(0, f"model={json.dumps(options.model)}")
    if _names_recipe(options.source):
        if options.recipe:
            raise UserError(
                "two recipes given",
                where=f"{options.source}, {options.recipe}",
                mend="with --recipe, SOURCE is a .jsonl file",
            )
        path: Path | None = Path(options.source)
    else:
        overrides.insert(0, f"source.path={json.dumps(options.source)}")
        path, embedded = options.recipe, shipped_recipes() / "embedded.yaml"
        path = path and (find_recipe(path) or path)
        if path is None and options.model == "embedded":
            path = embedded
        if path is None and not options.model:
            raise UserError("no model given", mend="add --model NAME, a folder, or 'embedded'")
        if path is not None and path.resolve() == embedded.resolve():
            # Those choices of ours belong to the embedded documents; a recipe of the user's means what it says.
            overrides = [
                "source.max_documents=null",
                "source.max_questions_per_document=null",
                "source.kinds=null",
                "generation.cache=null",
                "judge.keep_bare_reference=true",
                *overrides,
            ]
    return load_recipe(BuildRecipe, "build", path, overrides)


def _names_recipe(source: str) -> bool:
    """Whether SOURCE is a recipe: a YAML file, or the name of a shipped one where nothing else has that name.

    Raises:
        UserError: nothing has that name, and it is nearly a shipped recipe's.
    """
    from logodata.common.recipes.files import find_recipe, nearest_recipes, no_recipe

    if source.endswith((".yaml", ".yml")):
        return True
    if Path(source).expanduser().exists() or ":" in source:
        return False
    if find_recipe(source):
        return True
    if not Path(source).suffix[1:].isalpha() and nearest_recipes(source):
        raise no_recipe(source)
    return False


def print_questions_schema() -> None:
    """What settings ``logodata questions`` has."""
    from logodata.common.recipes.reading import recipe_schema
    from logodata.questions.settings import QuestionsRecipe

    print(recipe_schema(QuestionsRecipe))


def questions_command(options: argparse.Namespace) -> None:
    """Have questions written."""
    from logodata.common.console import console
    from logodata.common.recipes.reading import load_recipe
    from logodata.questions.settings import QuestionsRecipe
    from logodata.questions.writing import describe_questions, write_questions

    given = [f"source.path={json.dumps(options.corpus)}", f"model={json.dumps(options.model)}"]
    recipe = load_recipe(QuestionsRecipe, "build", None, [*given, *options.overrides])
    if options.dry_run:
        import yaml

        console.print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), markup=False, end="")
        return
    stats = write_questions(recipe, options.output)
    if stats:
        line = f"{describe_questions(stats)}\nwrote {options.output}: logodata build {options.output} -o DIR"
        console.print(line, markup=False, soft_wrap=True)


def inspect_command(options: argparse.Namespace) -> None:
    """Show samples in the terminal, or write a page."""
    if options.html:
        from logodata.common.console import console
        from logodata.dataset.inspect_page import write_page

        shown = write_page(options.data, options.html, options.id, options.n)
        console.print(f"wrote {shown} to {options.html}", markup=False, soft_wrap=True)
        return
    from logodata.dataset.inspect_text import print_samples

    print_samples(options.data, options.id, 1 if options.n is None else options.n)


def stats_command(options: argparse.Namespace) -> None:
    """Statistics, or log-probabilities."""
    if options.log_probs:
        _log_probs(options)
        return
    for option in ("--model", "-n", "--dtype", "--device"):
        if getattr(options, option.lstrip("-")) is not None:
            raise UserError(f"{option} says how to score responses", mend="add --log-probs, or leave it out")
    from logodata.dataset.stats import print_stats

    print_stats(options.data, as_json=options.json)


def _log_probs(options: argparse.Namespace) -> None:
    from logodata.dataset.samples import read_manifest, sample_files
    from logodata.models.loading import check_model

    if len(options.data) > 1:
        raise UserError("--log-probs scores one data set", mend="run it for each folder")
    # Before torch is imported, which takes seconds.
    sample_files(options.data[0])
    check_model(options.model or read_manifest(options.data[0]).model)
    from logodata.dataset import log_probs

    scoring = {"num_samples": options.n or 50, "dtype": options.dtype, "device": options.device or "auto"}
    report = log_probs.measure(options.data[0], model=options.model, **scoring)
    if options.json:
        print(strict_dumps(report.to_json(), indent=2, ascii_only=True))
    else:
        log_probs.show(report)


def push_command(options: argparse.Namespace) -> None:
    """Upload a data set."""
    from logodata.dataset.push import push

    print(push(options.data, options.repository, private=options.private, revision=options.revision))


def export_command(options: argparse.Namespace) -> None:
    """Write another trainer's format."""
    from logodata.common.console import console, note
    from logodata.dataset.export import export

    written = export(options.data, options.format, options.output, model=options.model)
    for text in written.notes:
        note(text)
    console.print(f"wrote {written.rows} rows to {options.output}", markup=False, soft_wrap=True)
