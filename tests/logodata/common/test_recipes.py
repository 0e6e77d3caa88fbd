"""Recipes: sections, layers, overrides, and errors that name file, line and key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag

from logodata.common.errors import UserError
from logodata.common.recipes.fields import merge, nested_models
from logodata.common.recipes.files import find_recipe
from logodata.common.recipes.reading import RecipeModel, load_recipe, shipped_recipes
from logodata.recipe.settings import BuildRecipe
from logoeval.recipe.settings import EvalRecipe
from logotrain.recipe.settings import TrainRecipe


class Alpha(RecipeModel):
    """The default variant."""

    name: Literal["alpha"] = "alpha"
    scale: float = Field(default=10.0, gt=0)
    weight: float = 0.1


class Beta(RecipeModel):
    """Another one: ``scale`` means something else here."""

    name: Literal["beta"] = "beta"
    scale: float = 0.5


class Inner(RecipeModel):
    """A nested section."""

    size: int = 1
    depth: int = 1
    either: bool | Literal["auto"] = "auto"
    sizes: tuple[int, ...] = (1, 2)
    names: dict[str, int] = Field(default_factory=dict)


def _name(value: object) -> object:
    return value.get("name", "alpha") if isinstance(value, dict) else getattr(value, "name", None)


class Recipe(RecipeModel):
    """Stands for a training recipe."""

    model: str
    seed: int = 0
    inner: Inner = Inner()
    maybe: Inner | None = None
    loss: Annotated[Annotated[Alpha, Tag("alpha")] | Annotated[Beta, Tag("beta")], Discriminator(_name)] = Alpha()


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        file = folder / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


def load(path: Path, *overrides: str) -> Recipe:
    return load_recipe(Recipe, "train", path, overrides)


def refusal(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(Recipe, "train", path, overrides)
    return str(caught.value)


def test_faults_name_file_line_and_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    for text, message in [
        (
            "model: m\nbuild:\n  source: {path: x}\n  contexts:\n    num_chunk: 3\n",
            "r.yaml:5: unknown key 'contexts.num_chunk' (did you mean 'num_chunks'?)",
        ),
        ("model: m\nbild: {}\n", "r.yaml:2: unknown key 'bild' (did you mean 'build'?)"),
        ("model: m\nbuild: {}\n", "r.yaml:2: 'source' is missing"),
        ("model: m\nbuild:\n  source: {path: x}\n  seed: many\n", "r.yaml:4: 'seed'"),
        ("model: m\nbuild: 3\n", "r.yaml:2: section 'build' is not a mapping"),
        ("model: m\nseed: 1\nbuild:\n  source: {path: x}\nseed: 2\n", "r.yaml:5: 'seed' stands at"),
        ("model: [\n", "not valid YAML"),
        ("- 1\n", "a recipe is a YAML mapping"),
    ]:
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            load_recipe(BuildRecipe, "build", file)
        assert message in str(caught.value)


def test_all_unknown_keys_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, r="model: m\ntrain:\n  inner:\n    siz: 1\n  modle: m\n", top="bild: {}\nmodel: m\nmodle: m\n")
    assert refusal(tmp_path / "r.yaml", "los=1") == (
        f"{tmp_path}/r.yaml:4, {tmp_path}/r.yaml:5, los=1: unknown keys 'inner.siz', 'modle', 'los' "
        "(inner.siz: did you mean 'size'?; modle: did you mean 'model'?; los: did you mean 'loss'?)"
    )
    assert refusal(tmp_path / "top.yaml") == (
        f"{tmp_path}/top.yaml:1, {tmp_path}/top.yaml:3: unknown keys 'bild', 'modle' "
        "(bild: did you mean 'build'?; modle: did you mean 'model'?)"
    )
    many = [f"unknown{number}=1" for number in range(7)]
    assert "unknown keys 'unknown0', 'unknown1', 'unknown2', 'unknown3', 'unknown4', and 2 more (" in refusal(
        None, *many
    )
    assert "CANARY" not in refusal(None, "model=m", "api_key_env=CANARY", "los=1")


def test_shared_keys_reach_a_section_that_does_not_set_them(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: a\nseed: 3\nbuild:\n  model: b\n  source: {path: x}\n")
    recipe = load_recipe(BuildRecipe, "build", file, ["source.path=y"])
    assert (recipe.model, recipe.seed, recipe.source.path) == ("b", 3, "y")


def test_a_missing_recipe_is_told_what_there_is(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere.yaml")
    assert message.startswith(f"{tmp_path}/nowhere.yaml: no such recipe (shipped ones: embedded, ")
    assert message.endswith(f"All are in {shipped_recipes()})")


@pytest.mark.parametrize("name", ["llama3-80k", "llama3-80k.yaml", "recipes/llama3-80k.yaml", "figure6/m2-lambda0-8k"])
def test_a_shipped_recipe_is_found_by_its_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_recipe(name)
    assert found is not None
    assert found.relative_to(shipped_recipes()).with_suffix("").as_posix() in name
    write(tmp_path, top=f"extends: {name}\ntrain: {{seed: 5}}\n")
    recipe = load_recipe(TrainRecipe, "train", Path("top"))
    assert (recipe.seed, recipe.epochs) == (5, 2)
    # What the user has goes first.
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("model: mine\n")
    assert find_recipe(name) == Path(name)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("llama3-80", "llama3-80k"),
        ("lama3-80k.yaml", "llama3-80k"),
        ("recipes/qwen.yaml", "qwen3"),
        ("embeded", "embedded"),
    ],
)
def test_a_misspelt_recipe_is_told_the_nearest(typed: str, near: str) -> None:
    assert f"no such recipe (did you mean {near}" in refusal(Path(typed))


def test_paths_in_a_recipe_are_found_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every section, every field that may be a path; what is nowhere, and words that are none, stay as written."""
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    for name in (
        "t.jinja",
        "docs.jsonl",
        "q.jsonl",
        "cache.jsonl",
        "noise",
        "pg19",
        "hay",
        "built",
        "model",
        "embedded",
    ):
        (home / name).write_text("")
    (here / "only-here").write_text("")
    write(
        home,
        base="model: model\n"
        "build:\n  chat_template: t.jinja\n  source: {path: docs.jsonl, questions: q.jsonl}\n"
        "  generation: {cache: cache.jsonl}\n  judge: {model: {name: model, chat_template: t.jinja}, "
        "embedding_model: embedded}\n  evaluator: {entity_model: builtin}\n"
        "train:\n  data: {path: built}\n"
        "eval:\n  adapter: only-here\n  ppl: {text: pg19}\n  qa: {data: built}\n"
        "  niah: {haystacks: [noise, hay, nowhere], retrieval: {heads: /away/heads.json}}\n",
        other="model: embedded\nbuild:\n  source: {path: 'embedded:train'}\n  generation: {cache: embedded}\n",
    )
    (here / "top.yaml").write_text("extends: ../home/base.yaml\neval: {adapter: only-here}\n")
    monkeypatch.chdir(here)
    for file in (home / "base.yaml", Path("../home/base.yaml"), Path("top.yaml")):
        at = Path("../home") if file.parent != home else home
        build = load_recipe(BuildRecipe, "build", file)
        assert build.model == str(at / "model")
        assert build.chat_template == at / "t.jinja"
        assert (build.source.path, build.source.questions) == (str(at / "docs.jsonl"), str(at / "q.jsonl"))
        assert build.generation.cache == at / "cache.jsonl"
        assert build.judge.model is not None
        assert (build.judge.model.name, build.judge.model.chat_template) == (str(at / "model"), at / "t.jinja")
        assert (build.judge.embedding_model, build.evaluator.entity_model) == ("embedded", "builtin")
        assert load_recipe(TrainRecipe, "train", file).data.path == at / "built"
        measured = load_recipe(EvalRecipe, "eval", file)
        assert measured.adapter == Path("only-here")  # not beside the recipe: the current folder's
        assert measured.ppl is not None
        assert measured.ppl.text == str(at / "pg19")
        assert measured.qa is not None
        assert measured.qa.data == at / "built"
        assert measured.niah is not None
        assert measured.niah.haystacks == ("noise", str(at / "hay"), "nowhere")
        assert measured.niah.retrieval is not None
        assert measured.niah.retrieval.heads == Path("/away/heads.json")
    other = load_recipe(BuildRecipe, "build", home / "other.yaml", ["chat_template=t.jinja"])
    assert (other.model, other.source.path, other.generation.cache) == ("embedded", "embedded:train", "embedded")
    assert other.chat_template == Path("t.jinja")  # an override is the current folder's


def test_the_projects_templates_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, mine="model: m\nbuild:\n  source: {path: x}\n  chat_template: recipes/templates/qwen3.jinja\n")
    expected = shipped_recipes() / "templates" / "qwen3.jinja"
    for name in ("qwen3", "mine"):
        assert load_recipe(BuildRecipe, "build", Path(name)).chat_template == expected


def test_lists_take_one_value_and_lengths_take_k() -> None:
    train = load_recipe(
        TrainRecipe,
        "train",
        None,
        [
            "model=m",
            "lora.target_modules=q_proj",
            "positions.target_length=128K",
            "row_tokens=0.5m",
            "optimizer.betas=.9,.95",
        ],
    )
    assert train.lora.target_modules == ("q_proj",)
    assert (train.positions.target_length, train.row_tokens) == (131072, 2**19)
    assert train.optimizer.betas == (0.9, 0.95)
    measured = load_recipe(
        EvalRecipe,
        "eval",
        None,
        [
            "model=m",
            "niah.lengths=[128K, 256k]",
            "niah.haystacks=noise,essay",
            "ppl.lengths=4 K",
            "engine.max_model_len=0.5M",
        ],
    )
    assert measured.niah is not None
    assert measured.ppl is not None
    assert (measured.niah.lengths, measured.niah.haystacks) == ((131072, 262144), ("noise", "essay"))
    assert (measured.ppl.lengths, measured.engine.max_model_len) == ((4096,), 2**19)
    build = load_recipe(
        BuildRecipe,
        "build",
        None,
        ["model=m", "source.path=x", "chunking.chunk_tokens=1K", "contexts.mixed_ratios=0.5"],
    )
    assert (build.chunking.chunk_tokens, build.contexts.mixed_ratios) == (1024, (0.5,))


@pytest.mark.parametrize("value", ["128X", "0.3333K", "K", "-1K", "0K"])
def test_what_is_no_length_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"positions\.target_length"):
        load_recipe(TrainRecipe, "train", None, ["model=m", f"positions.target_length={value}"])


def token_fields(model: type[RecipeModel]) -> Iterator[str]:
    """Fields named as lengths in tokens that take no K."""
    for name, field in model.model_fields.items():
        for nested in nested_models(field).values():
            yield from (f"{name}.{below}" for below in token_fields(nested))  # type: ignore[arg-type]
        if re.search(r"tokens|lengths?$|max_model_len", name) and "token_count" not in repr(
            (field.metadata, field.annotation)
        ):
            yield name


def test_every_length_takes_k() -> None:
    """But for rates, counts of repetitions and other numbers that no one calls a window, and the name of a field."""
    assert set(token_fields(BuildRecipe)) == {
        f"{engine}.{name}"
        for engine in ("engine", "judge.model.engine", "judge.grades.engine")
        for name in ("tokens_per_minute", "max_tokens_field")
    }
    assert set(token_fields(TrainRecipe)) == {"collapse.max_new_tokens", "objective.tokens"}
    assert set(token_fields(EvalRecipe)) == {"engine.tokens_per_minute", "engine.max_tokens_field"}


def test_extends_merges_mappings_and_replaces_the_rest(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(
        tmp_path,
        base="name: base\ndescription: of the base\nmodel: m\nseed: 1\ntrain:\n  maybe: {size: 7, depth: 7}\n"
        "  inner: {size: 5, sizes: [3, 4, 5], names: {a: 1}}\n",
        middle="extends: base.yaml\nseed: 2\ntrain:\n  inner: {depth: 6, sizes: [9], names: {b: 2}}\n",
    )
    (tmp_path / "deep" / "top.yaml").write_text("extends: ../middle.yaml\nmodel: n\ntrain:\n  maybe: null\n")
    recipe = load(tmp_path / "deep" / "top.yaml", "inner.size=8")
    assert (recipe.model, recipe.seed, recipe.maybe) == ("n", 2, None)
    assert recipe.inner == Inner(size=8, depth=6, sizes=(9,), names={"a": 1, "b": 2})


def test_an_empty_section_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, base="model: m\ntrain:\n  inner: {size: 5}\n", top="extends: base.yaml\ntrain:\n  # nothing yet\n")
    assert load(tmp_path / "top.yaml").inner.size == 5


def test_errors_name_the_file_in_which_the_key_stands(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="model: m\n\ntrain:\n  inner:\n    siz: 5\n",
        top="extends: base.yaml\ntrain:\n  inner:\n    depth: 2\n",
    )
    assert refusal(tmp_path / "top.yaml").startswith(f"{tmp_path}/base.yaml:5: unknown key 'inner.siz' (did you")
    write(
        tmp_path, base="model: m\ntrain:\n  inner: {size: 5}\n", top="extends: base.yaml\ntrain:\n  inner: {depth: x}"
    )
    assert refusal(tmp_path / "top.yaml").startswith(f"{tmp_path}/top.yaml:3: 'inner.depth': ")
    write(tmp_path, base="model: m\nname: x\nbild: {}\n")
    assert refusal(tmp_path / "top.yaml").startswith(f"{tmp_path}/base.yaml:3: unknown key 'bild'")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("b.yaml", "b.yaml:1: recipes extend one another: a.yaml -> b.yaml -> a.yaml (remove one 'extends')"),
        ("a.yaml", "a.yaml:2: recipes extend one another: a.yaml -> a.yaml"),
        ("none.yaml", "a.yaml:2: extends {folder}/none.yaml: no such recipe (give a path relative to this file)"),
        ("[b.yaml]", "a.yaml:2: 'extends' is not a file name"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path: Path, value: str, message: str) -> None:
    write(tmp_path, a=f"model: m\nextends: {value}\n", b="extends: a.yaml\n")
    assert message.format(folder=tmp_path) in refusal(tmp_path / "a.yaml")


def test_two_recipes_may_extend_the_same_one(tmp_path: Path) -> None:
    write(tmp_path, base="model: m\n", left="extends: base.yaml\nseed: 1\n", right="extends: left.yaml\nseed: 2\n")
    assert (load(tmp_path / "left.yaml").seed, load(tmp_path / "right.yaml").seed) == (1, 2)


def test_another_name_starts_from_its_own_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path,
        base="model: m\ntrain:\n  loss: {scale: 3, weight: 0.5}\n",
        same="extends: base.yaml\ntrain:\n  loss: {weight: 0.7}\n",
        other="extends: base.yaml\ntrain:\n  loss: {name: beta}\n",
    )
    assert load(tmp_path / "same.yaml").loss == Alpha(scale=3, weight=0.7)
    assert load(tmp_path / "other.yaml").loss == Beta()
    assert load(tmp_path / "same.yaml", "loss.name=alpha").loss == Alpha(scale=3, weight=0.7)
    assert capsys.readouterr().err == ""  # the author of a file knows what it drops
    # The order of overrides does not matter, and what they drop is said.
    for overrides in (
        ["loss.name=beta", "loss.scale=2"],
        ["loss.scale=2", "loss.name=beta"],
        ["loss={name: beta, scale: 2}"],
    ):
        assert load(tmp_path / "base.yaml", *overrides).loss == Beta(scale=2)
        assert "loss.name=beta starts from its own defaults, dropped: loss.weight=0.5" in capsys.readouterr().err
    assert load(tmp_path / "base.yaml", "loss.name=beta").loss == Beta()
    assert "dropped: loss.scale=3 loss.weight=0.5" in capsys.readouterr().err
    refusal(tmp_path / "base.yaml", "loss.name=gamma")
    assert capsys.readouterr().err == ""


def test_errors_in_a_variant_read_as_its_author_wrote_them(tmp_path: Path) -> None:
    write(tmp_path, r="model: m\ntrain:\n  loss:\n    name: beta\n    scal: 1\n")
    assert refusal(tmp_path / "r.yaml") == f"{tmp_path}/r.yaml:5: unknown key 'loss.scal' (did you mean 'scale'?)"
    write(tmp_path, r="model: m\ntrain:\n  loss:\n    name: betta\n")
    assert refusal(tmp_path / "r.yaml") == f"{tmp_path}/r.yaml:4: 'loss.name': there is no 'betta' (known: alpha, beta)"
    write(tmp_path, r="model: m\ntrain:\n  loss: beta\n")
    assert refusal(tmp_path / "r.yaml") == (
        f"{tmp_path}/r.yaml:3: 'loss' is not a mapping (set loss.name, one of alpha, beta)"
    )
    assert refusal(None, "model=m", "loss.scale=-1").startswith("loss.scale=-1: 'loss.scale': input should be greater")
    assert refusal(None, "model=m", "loss={name: beta, weight: 1}").startswith(
        "loss={name: beta, weight: 1}: unknown key 'loss.weight' (known keys: name, scale)"
    )


def test_errors_in_a_union_of_types_name_all_that_would_do() -> None:
    assert refusal(None, "model=m", "inner.either=maybe") == (
        "inner.either=maybe: 'inner.either': input should be a valid boolean, unable to interpret input or input "
        "should be 'auto', got 'maybe' (see the field's description with --schema)"
    )
    assert refusal(None, "model=m", "inner.sizes=[1, x]").startswith("inner.sizes=[1, x]: 'inner.sizes.1': ")
    assert refusal(None, "model=m", "inner.names={a: x}").startswith("inner.names={a: x}: 'inner.names.a': ")
    assert refusal(None, "model=m", "maybe.siz=1").startswith(
        "maybe.siz=1: unknown key 'maybe.siz' (did you mean 'size'?)"
    )


def test_merge_leaves_its_arguments_alone() -> None:
    base, layer = {"inner": {"size": 1, "names": {"a": 1}}}, {"inner": {"names": {"b": 2}}}
    assert merge(base, layer, Recipe) == {"inner": {"size": 1, "names": {"a": 1, "b": 2}}}
    assert (base, layer) == ({"inner": {"size": 1, "names": {"a": 1}}}, {"inner": {"names": {"b": 2}}})


@pytest.mark.parametrize("value", ["16,384", "131,072", "1,048,576"])
def test_a_number_with_commas_is_not_taken_apart(value: str) -> None:
    with pytest.raises(UserError, match=r"'niah\.lengths"):
        load_recipe(EvalRecipe, "eval", None, ["model=m", f"niah.lengths={value}"])


def test_home_is_written_out_in_overrides_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    write(tmp_path, r="model: ~/model\ntrain:\n  data: {path: ~/data}\n")
    found = load_recipe(TrainRecipe, "train", tmp_path / "r.yaml")
    assert (found.model, found.data.path) == ("/home/me/model", Path("/home/me/data"))
    found = load_recipe(TrainRecipe, "train", None, ["model=~/model", "data.path=~/data"])
    assert (found.model, found.data.path) == ("/home/me/model", Path("/home/me/data"))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data=built", "'data' is not a mapping (set data.KEY=..., one of path, max_samples, "),
        ("rope=yarn", "'rope' is not a mapping (set rope.KEY=..., one of type, factor)"),
        ("objective=dpo", "'objective' is not a mapping (set objective.name, one of logo, "),
        ("optimizer=adamw_torch", "'optimizer' is not a mapping (here it is optimizer.name, and optimizer.lr"),
        ("max_steps=-1", "(here it is null: all epochs)"),
    ],
)
def test_a_value_where_a_section_stands_is_told_what_is_in_it(override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(TrainRecipe, "train", None, ["model=m", override])
    assert said in str(caught.value)
