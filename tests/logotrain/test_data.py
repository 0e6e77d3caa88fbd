"""What is refused before any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from logodata.common.console import stderr
from logodata.common.errors import UserError
from logodata.contract import PreferenceSample
from logodata.dataset.samples import read_samples, write_samples
from logotrain.data.loading import load_data
from logotrain.recipe.settings import TrainRecipe

Samples = Callable[..., PreferenceSample]
Recipes = Callable[..., TrainRecipe]
Builds = Callable[..., Path]


def test_loads_everything_under_the_models_window(make_recipe: Recipes) -> None:
    data = load_data(make_recipe())
    assert [sample.id for sample in data.samples] == [f"s{n}" for n in range(6)]
    assert data.target_length == 2048


def test_samples_come_without_the_texts_of_chunks(make_recipe: Recipes, make_build: Builds) -> None:
    recipe = make_recipe()
    read = read_samples(recipe.data.path)
    assert any(chunk.text for sample in read for chunk in sample.chunks)
    bare = [
        sample.model_copy(update={"chunks": [chunk.model_copy(update={"text": ""}) for chunk in sample.chunks]})
        for sample in read
    ]
    assert load_data(recipe).samples == bare
    objects: dict[int, set[int]] = {}
    for token in (token for sample in load_data(recipe).samples for token in sample.prompt_ids):
        objects.setdefault(token, set()).add(id(token))
    assert all(len(ids) == 1 for ids in objects.values()), "equal ids are one object"


def test_max_samples_takes_the_first_and_says_so(make_recipe: Recipes, capsys: pytest.CaptureFixture[str]) -> None:
    data = load_data(make_recipe(**{"data.max_samples": 2}))
    assert [sample.id for sample in data.samples] == ["s0", "s1"]
    assert "first 2 of 6 samples" in capsys.readouterr().err


def test_num_rejected_takes_the_first_of_each_sample(make_recipe: Recipes) -> None:
    everything = load_data(make_recipe()).samples
    assert {len(sample.rejected) for sample in everything} == {2}
    first = load_data(make_recipe(**{"data.num_rejected": 1}))
    assert [sample.rejected for sample in first.samples] == [sample.rejected[:1] for sample in everything]
    assert first.fingerprint() != load_data(make_recipe()).fingerprint()
    with pytest.raises(UserError, match=r"s0 has 2 dis-preferred responses, data\.num_rejected asks for 3"):
        load_data(make_recipe(**{"data.num_rejected": 3}))


def test_rejected_strategies_choose_by_context_before_num_rejected_counts(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples
) -> None:
    sample = make_sample("a")
    named = zip(("irrelevant", "mixed-0.5"), sample.rejected, strict=True)
    rejected = [response.model_copy(update={"strategy": strategy}) for strategy, response in named]
    folder = make_build([sample.model_copy(update={"rejected": rejected})], name="named")

    def load(**fields: object) -> PreferenceSample:
        overrides = {f"data.{name}": value for name, value in fields.items()}
        return load_data(make_recipe(**{"data.path": str(folder)}, **overrides)).samples[0]

    assert load(rejected_strategies=["mixed-0.5"]).rejected == rejected[1:]
    assert load(rejected_strategies=["mixed-0.5", "irrelevant"], num_rejected=1).rejected == rejected[:1]
    with pytest.raises(UserError, match=r"no dis-preferred response 'mixed-0.25'.*it has irrelevant, mixed-0.5"):
        load(rejected_strategies=["mixed-0.5", "mixed-0.25"])
    with pytest.raises(UserError, match=r"a has 1 dis-preferred responses, data\.num_rejected asks for 2"):
        load(rejected_strategies=["mixed-0.5"], num_rejected=2)


def test_fingerprint_follows_the_contents(make_recipe: Recipes) -> None:
    fingerprints = [
        load_data(make_recipe(**overrides)).fingerprint() for overrides in ({}, {}, {"data.max_samples": 5})
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.parametrize("together", [True, False], ids=["one file", "two files"])
def test_refuses_an_id_that_stands_twice(
    together: bool, make_recipe: Recipes, make_build: Builds, make_sample: Samples
) -> None:
    """Positions and reference log-probabilities are kept by it. Two builds in one folder have files of their own."""
    samples = [make_sample("a"), make_sample("b"), make_sample("c"), make_sample("d").model_copy(update={"id": "b"})]
    folder = make_build(samples if together else samples[:3], name="twice")
    if not together:
        write_samples(folder / "data" / "train-2.parquet", samples[3:])
    first, last = ("samples", 2), (("samples", 4) if together else ("train-2", 1))
    if not together:
        assert sorted(path.stem for path in (folder / "data").iterdir()) == ["samples", "train-2"]
    expected = f"{last[0]}.parquet:row {last[1]}: sample id 'b' stands at .*{first[0]}.parquet:row {first[1]} too"
    with pytest.raises(UserError, match=expected):
        load_data(make_recipe(**{"data.path": str(folder)}))


def test_refuses_ids_of_another_tokenizer(make_recipe: Recipes, make_build: Builds, make_sample: Samples) -> None:
    folder = make_build([make_sample("a")], name="other", model="some/model", tokenizer_fingerprint="0" * 16)
    with pytest.raises(UserError, match=r"another tokenizer \(built for some/model\)"):
        load_data(make_recipe(**{"data.path": str(folder)}))


def test_says_when_the_responses_are_another_models(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_build([make_sample("a")], name="other", model="some/model", model_fingerprint="0" * 16)
    load_data(make_recipe(**{"data.path": str(folder)}))
    assert "responses are of 'some/model'" in capsys.readouterr().err


def test_a_model_without_chat_template_will_do(make_recipe: Recipes, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The data hold token ids: nothing is formatted here."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_model_dir.iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).write_bytes(file.read_bytes())
    assert len(load_data(make_recipe(model=str(bare))).samples) == 6


@pytest.mark.parametrize(
    ("responses", "message"),
    [((0, 3), "sample bad: empty preferred response"), ((3, 2, 0), "sample bad: empty dis-preferred 2 response")],
)
def test_refuses_empty_responses(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, responses: tuple[int, ...], message: str
) -> None:
    folder = make_build([make_sample("good"), make_sample("bad", responses=responses)], name="other")
    with pytest.raises(UserError, match=message):
        load_data(make_recipe(**{"data.path": str(folder)}))


def test_refuses_an_empty_prompt(make_recipe: Recipes, make_build: Builds, make_sample: Samples) -> None:
    sample = make_sample("bad").model_copy(update={"prompt_ids": [], "chunks": []})
    with pytest.raises(UserError, match="sample bad: empty prompt"):
        load_data(make_recipe(**{"data.path": str(make_build([sample], name="other"))}))


def test_refuses_positions_beyond_the_window(make_recipe: Recipes) -> None:
    with pytest.raises(UserError, match="target_length=4096 is beyond the model's window of 2048"):
        load_data(make_recipe(**{"positions.target_length": 4096}))


def test_refuses_a_sample_that_does_not_fit(make_recipe: Recipes, make_build: Builds, make_sample: Samples) -> None:
    folder = make_build([make_sample("a", responses=(4, 10))], name="other")  # 31 prompt tokens
    load_data(make_recipe(**{"data.path": str(folder), "positions.target_length": 41}))
    with pytest.raises(UserError, match="sample a: prompt of 31 tokens and response of 10 do not fit under 40"):
        load_data(make_recipe(**{"data.path": str(folder), "positions.target_length": 40}))


def test_refuses_a_folder_without_samples(make_recipe: Recipes, make_build: Builds, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        load_data(make_recipe(**{"data.path": str(tmp_path / "nowhere")}))
    with pytest.raises(UserError, match="holds no samples"):
        load_data(make_recipe(**{"data.path": str(make_build([], name="none"))}))


def test_sft_looks_at_what_it_computes(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dis-preferred responses that are too long, empty or of another vocabulary are not in its rows."""
    sample = make_sample("a", responses=(4, 20, 0, 3))  # 31 prompt tokens
    strange = sample.rejected[2].model_copy(update={"token_ids": [10**6]})
    sample = sample.model_copy(update={"rejected": [*sample.rejected[:2], strange]})
    folder = make_build([sample], name="other")
    fields = {"data.path": str(folder), "row_tokens": 35, "positions.target_length": 35}
    data = load_data(make_recipe(objective={"name": "sft"}, **fields))
    assert [found.rejected for found in data.samples] == [sample.rejected]
    stderr.print(data.lengths())
    table = capsys.readouterr().err
    assert "dis-preferred" not in table
    assert "35" in table.splitlines()[-2]
    with pytest.raises(UserError, match="sample a: empty dis-preferred 2 response"):
        load_data(make_recipe(**fields))


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(3, 11), (11, 60)], "tokens 11 to 60, the chunk before it ends at 11, the prompt has 31 tokens"),
        ([(11, 19), (3, 11)], "tokens 3 to 11, the chunk before it ends at 19"),
        ([(3, 20), (11, 25)], "tokens 11 to 25, the chunk before it ends at 20"),
        ([(-3, 11)], "tokens -3 to 11"),
        ([(3, 3)], "tokens 3 to 3"),
    ],
)
def test_refuses_chunks_that_are_not_in_the_prompt(
    make_recipe: Recipes, make_build: Builds, make_sample: Samples, spans: list[tuple[int, int]], message: str
) -> None:
    sample = make_sample("bad")
    chunks = [sample.chunks[0].model_copy(update={"token_start": start, "token_end": end}) for start, end in spans]
    folder = make_build([make_sample("good"), sample.model_copy(update={"chunks": chunks})], name="other")
    with pytest.raises(UserError, match=rf"other: sample bad: a chunk spans {message}"):
        load_data(make_recipe(**{"data.path": str(folder)}))
