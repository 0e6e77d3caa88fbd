"""Short samples among the long ones: what an epoch holds, that a stop changes nothing, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from logodata.common.errors import UserError
from logodata.contract import IMPORT_SCHEMA_VERSION, ImportManifest, PreferenceSample
from logodata.models.facts import tokenizer_fingerprint
from logotrain import steps
from logotrain.cli import main
from logotrain.data.loading import load_data
from logotrain.recipe.settings import TrainRecipe
from logotrain.rows.collate import Collator
from logotrain.run import run
from logotrain.schedule import Schedule
from tests.data_sets import TIMES
from tests.logotrain.conftest import sample_of

Recipes = Callable[..., TrainRecipe]
Builds = Callable[..., Path]


def schedule_of(num_samples: int, num_mixed: int = 0, mix_per_epoch: int = 0, **values: object) -> Schedule:
    recipe = {"model": "m", "data": {"path": "d"}, "epochs": 3, "samples_per_step": 4, **values}
    made = TrainRecipe.model_validate(recipe)
    return Schedule(made, num_samples, num_mixed=num_mixed, mix_per_epoch=mix_per_epoch)


def stream_of(schedule: Schedule) -> list[tuple[int, int]]:
    return [entry for step in range(schedule.total_steps) for entry in schedule.samples(step)]


def short(name: str, **changes: Any) -> PreferenceSample:
    """A pair without a context, one dis-preferred answer, as an import makes it."""
    return sample_of(name, responses=(4, 3), chunks=0, **changes).model_copy(update={"doc_id": None})


@pytest.fixture
def make_import(make_build: Builds, tiny_model_dir: Path, tiny_tokenizer: Any) -> Builds:
    """``make_import(samples)``: a folder as ``logodata import`` leaves it."""

    def make(samples: list[PreferenceSample], name: str = "import") -> Path:
        folder = make_build(samples, name=name)
        manifest = ImportManifest.model_validate(
            {
                "schema_version": IMPORT_SCHEMA_VERSION,
                "logo_align": "0",
                "model": str(tiny_model_dir),
                "model_fingerprint": "abc",
                "tokenizer_fingerprint": tokenizer_fingerprint(tiny_tokenizer),
                "source": {"path": "pairs.jsonl", "sha256": "123"},
                "pairs": {"format": "standard", "prompt": "plain", "columns": {}, "group": False, "window": 64,
                          "chunk_tokens": None},
                "chat_template": None,
                "samples": len(samples),
            }
        )  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest.to_json()))
        return folder

    return make


@pytest.fixture
def mix_dir(make_import: Builds) -> Path:
    """Five short pairs; one has the id of a long sample."""
    return make_import([short(name) for name in ("p0", "p1", "p2", "p3", "s0")])


def mixed(folder: Path, share: float = 0.4, **more: Any) -> dict[str, Any]:
    """Beside six long samples, 0.4 are four short ones."""
    return {"data.mix": {"path": str(folder), "share": share}, **more}


def test_an_epoch_takes_all_long_samples_and_the_next_short_ones() -> None:
    schedule = schedule_of(10, num_mixed=6, mix_per_epoch=4)
    stream = stream_of(schedule)
    assert (len(stream), schedule.stream_length, schedule.total_steps) == (42, 42, 11)
    for epoch in range(3):
        taken = Counter(index for at, index in stream if at == epoch)
        assert {index: taken[index] for index in range(10)} == dict.fromkeys(range(10), 1)
        assert sum(taken[index] for index in range(10, 16)) == 4
    # 12 draws of six: each twice. The first six are one pass, without a repetition, and so are the last.
    assert Counter(index for _, index in stream if index >= 10) == dict.fromkeys(range(10, 16), 2)
    first = [index for at, index in stream if at == 0 and index >= 10]
    assert len(set(first)) == 4
    places = [at for at, (epoch, index) in enumerate(stream) if epoch == 0 and index >= 10]
    assert places != [10, 11, 12, 13], "they stand among the long ones"


def test_a_pass_over_the_short_samples_is_a_permutation_of_its_own() -> None:
    """By the definition, with numpy alone."""
    seed, num_samples, num_mixed, per_epoch = 7, 5, 3, 4
    passes = [num_samples + at for taken in range(4) for at in np.random.default_rng([seed, taken, 1]).permutation(3)]
    expected = []
    for epoch in range(3):
        entries = [*range(num_samples), *passes[epoch * per_epoch : (epoch + 1) * per_epoch]]
        order = np.random.default_rng([seed, epoch]).permutation(num_samples + per_epoch)
        expected += [(epoch, int(entries[at])) for at in order]
    assert stream_of(schedule_of(num_samples, num_mixed, per_epoch, seed=seed)) == expected
    assert len({tuple(passes[at : at + 3]) for at in range(0, 12, 3)}) > 1, "reshuffled"


def test_a_step_alone_is_that_of_the_stream() -> None:
    whole = schedule_of(9, num_mixed=2, mix_per_epoch=5)
    expected = [whole.samples(step) for step in range(whole.total_steps)]
    for step in reversed(range(whole.total_steps)):
        assert schedule_of(9, num_mixed=2, mix_per_epoch=5).samples(step) == expected[step]


def test_without_a_mix_the_order_is_as_it_was() -> None:
    expected = [(epoch, int(at)) for epoch in range(3) for at in np.random.default_rng([0, epoch]).permutation(7)]
    assert stream_of(schedule_of(7)) == expected


def test_one_step_over_both_is_one_over_a_data_set_of_both(
    make_recipe: Recipes, make_build: Builds, make_import: Builds, tmp_path: Path
) -> None:
    """All samples once in one step, at natural positions: the same loss and the same adapter."""
    long, shorts = [sample_of(f"s{n}") for n in range(6)], [short(f"p{n}") for n in range(4)]
    fields = {"positions.mode": "natural", "epochs": 1, "samples_per_step": 10}
    together = make_build([*long, *shorts], name="together")
    run(make_recipe(**fields, **{"data.path": str(together)}), tmp_path / "one")
    fields |= {"data.path": str(make_build(long, name="long"))}
    run(make_recipe(**fields, **mixed(make_import(shorts))), tmp_path / "two")
    [one], [two] = (lines_of(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert (two.pop("mix"), "mix" in one) == (4, False)
    assert two == pytest.approx(one, rel=1e-5)
    name = "final/adapter_model.safetensors"
    weights = load_file(tmp_path / "one" / name)
    for key, value in load_file(tmp_path / "two" / name).items():
        torch.testing.assert_close(value, weights[key], rtol=0, atol=1e-6)


def lines_of(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def test_every_draw_is_trained_on_and_counted(
    make_recipe: Recipes,
    mix_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained: list[str] = []
    original = steps._sample_loss

    def noted(sample: PreferenceSample, *others: Any) -> Any:
        trained.append(sample.id)
        return original(sample, *others)

    monkeypatch.setattr(steps, "_sample_loss", noted)
    run(make_recipe(**mixed(mix_dir, samples_per_step=5)), tmp_path / "run")
    counts = Counter(trained)
    assert {name: counts[name] for name in (f"s{n}" for n in range(6))} == dict.fromkeys((f"s{n}" for n in range(6)), 2)
    shorts = {name: count for name, count in counts.items() if name.startswith("mix:")}
    assert set(shorts) == {"mix:p0", "mix:p1", "mix:p2", "mix:p3", "mix:s0"}
    assert sorted(shorts.values()) == [1, 1, 2, 2, 2]  # eight draws of five
    lines = lines_of(tmp_path / "run" / "metrics.jsonl")
    per_step = [trained[at : at + 5] for at in range(0, 20, 5)]
    assert [line["mix"] for line in lines] == [sum(name.startswith("mix:") for name in names) for names in per_step]
    said = " ".join(capsys.readouterr().err.split())
    assert "an epoch: 6 long + 4 short samples (data.mix, 40.0% of the samples)" in said
    assert "the 5 samples of data.mix last for 1.2 epochs; then they are drawn again" in said
    assert "short samples among those trained on (data.mix): 8" in said
    inputs = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert (inputs["num_samples"], inputs["num_mix"], inputs["mix_per_epoch"]) == (6, 5, 4)


@pytest.mark.parametrize("mode", ["mixed", "sparse", "pose", "randpos"])
def test_short_samples_keep_natural_positions(make_recipe: Recipes, make_build: Builds, mode: str) -> None:
    """Also those of a build, whose chunks could be spread."""
    folder = make_build([sample_of("a"), short("b")], name="mix")
    recipe = make_recipe(**mixed(folder), **{"positions.mode": mode})
    data = load_data(recipe)
    collator = Collator.of(recipe, data.target_length, data.unspread)

    def is_natural(sample: PreferenceSample) -> bool:
        found = collator([(1, sample)]).position_ids[0, : len(sample.prompt_ids)]
        return torch.equal(found, torch.arange(len(sample.prompt_ids)))

    assert [is_natural(sample) for sample in data.mix] == [True, True]
    assert [is_natural(sample) for sample in data.samples] == [False] * 6
    longest = max(collator([(0, sample)]).position_ids.max().item() for sample in data.mix)
    assert longest < 60


@pytest.mark.parametrize("how", ["killed", "sigterm"])
@pytest.mark.parametrize("at_call", [0, 4, 11, 17])
def test_a_stopped_run_goes_on_to_the_same_end(
    make_recipe: Recipes, mix_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, at_call: int
) -> None:
    fields = {"checkpoint.asynchronous": how == "sigterm", "checkpoint.every_steps": 1, "row_tokens": 90}
    recipe = make_recipe(**mixed(mix_dir, objective={"name": "dpo"}, **fields))
    run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        original, calls = steps._sample_loss, iter(range(10**6))

        def interfere(*arguments: Any) -> Any:
            if next(calls) == at_call:
                if how == "killed":
                    raise RuntimeError("power cut")
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments)

        patch.setattr(steps, "_sample_loss", interfere)
        with pytest.raises(RuntimeError if how == "killed" else KeyboardInterrupt):
            run(recipe, tmp_path / "cut")
    assert not (tmp_path / "cut" / "final").exists()
    run(recipe, tmp_path / "cut")
    assert lines_of(tmp_path / "cut" / "metrics.jsonl") == lines_of(tmp_path / "whole" / "metrics.jsonl")
    for name in ("final/adapter_model.safetensors", "reference.jsonl", "inputs.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_reference_has_a_value_for_each_draw_of_a_long_sample_and_one_for_a_short_one(
    make_recipe: Recipes, mix_dir: Path, tmp_path: Path
) -> None:
    run(make_recipe(**mixed(mix_dir, objective={"name": "dpo"})), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "reference.jsonl").read_text().splitlines()]
    assert Counter((line["id"], line["epoch"], len(line["logprobs"])) for line in lines) == {
        **{(f"s{n}", epoch, 3): 1 for n in range(6) for epoch in (0, 1)},
        **{(f"mix:{name}", 0, 2): 1 for name in ("p0", "p1", "p2", "p3", "s0")},
    }
    assert lines_of(tmp_path / "run" / "metrics.jsonl")[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


@pytest.mark.parametrize("objective", [{"name": "sft", "tokens": "sequence"}, {"name": "orpo"}, {"name": "cpo"}])
def test_other_objectives_and_full_tuning(
    make_recipe: Recipes, mix_dir: Path, tmp_path: Path, objective: dict[str, Any]
) -> None:
    run(make_recipe(**mixed(mix_dir, tuning="full", objective=objective)), tmp_path / "run")
    assert sum(line["mix"] for line in lines_of(tmp_path / "run" / "metrics.jsonl")) == 8


def test_a_small_mix_is_repeated_and_said(
    make_recipe: Recipes, make_import: Builds, capsys: pytest.CaptureFixture[str]
) -> None:
    data = load_data(make_recipe(**mixed(make_import([short("p0"), short("p1")]), share=0.5)))
    assert (data.mix_per_epoch, data.per_epoch) == (6, 12)
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: data.mix has 2 samples, and an epoch takes 6: each is drawn 3.0 times an epoch" in said
    drawn = Counter(index for _, index in stream_of(schedule_of(6, num_mixed=2, mix_per_epoch=6)))
    assert [drawn[index] for index in (6, 7)] == [9, 9]


def test_no_sample_of_the_mix_is_held_out(
    make_recipe: Recipes, make_build: Builds, mix_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = make_build([sample_of(f"s{n}").model_copy(update={"doc_id": f"d{n}"}) for n in range(6)], name="six")
    data = load_data(make_recipe(**mixed(mix_dir), **{"data.path": str(long), "data.validation": 0.5}))
    assert (len(data.samples), len(data.validation), data.mix_per_epoch, len(data.mix)) == (3, 3, 2, 5)
    assert not {sample.id for sample in data.validation} & {sample.id for sample in data.mix}
    assert "trained on too" not in capsys.readouterr().err
    # Held-out samples whose documents are in the mix are told.
    leak = make_build([sample_of(f"x{n}").model_copy(update={"doc_id": f"d{n}"}) for n in range(6)], name="leak")
    load_data(make_recipe(**mixed(leak), **{"data.path": str(long), "data.validation": 0.5}))
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: 3 of 3 samples in data.validation=0.5 are of documents that are trained on too" in said


def test_choices_of_long_samples_are_not_those_of_the_mix(make_recipe: Recipes, mix_dir: Path) -> None:
    data = load_data(make_recipe(**mixed(mix_dir), **{"data.num_rejected": 2, "data.max_samples": 3}))
    assert [len(sample.rejected) for sample in data.samples] == [2] * 3
    assert [len(sample.rejected) for sample in data.mix] == [1] * 5
    assert data.mix_per_epoch == 2


def test_ids_never_meet(make_recipe: Recipes, make_build: Builds, make_import: Builds) -> None:
    long = make_build([sample_of(name) for name in ("mix:p0", "p0", "b")], name="long")
    data = load_data(make_recipe(**mixed(make_import([short("p0")])), **{"data.path": str(long)}))
    assert [sample.id for sample in data.mix] == ["mix:mix:p0"]


def test_two_prompts_take_a_mix_of_a_build_and_no_imported_one(
    make_recipe: Recipes, make_build: Builds, mix_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {"objective": {"name": "solopo"}}
    with pytest.raises(UserError, match=r"name=solopo needs critical chunks, which the pairs of data.mix do not have"):
        load_data(make_recipe(**mixed(mix_dir), **fields))
    folder = make_build([sample_of("a"), sample_of("all", chunks=1)], name="mix")
    data = load_data(make_recipe(**mixed(folder), **fields))
    assert ([sample.id for sample in data.mix], data.left_out) == (["mix:a"], 1)
    assert "1 of 2 samples in" in capsys.readouterr().err


def test_what_is_refused(make_recipe: Recipes, make_build: Builds, mix_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.mix.share=0.01 beside 6 samples is not one .*raise it above 0.0769"):
        load_data(make_recipe(**mixed(mix_dir, share=0.01)))
    load_data(make_recipe(**mixed(mix_dir, share=0.08)))
    with pytest.raises(UserError, match="another tokenizer"):
        load_data(make_recipe(**mixed(make_build([short("p")], name="other", tokenizer_fingerprint="x"))))
    with pytest.raises(UserError, match="holds no samples"):
        load_data(make_recipe(**mixed(make_build([], name="none"))))
    with pytest.raises(UserError, match="tokens exceed row_tokens=50"):
        load_data(make_recipe(**mixed(make_build([short("p", tail=60)], name="long")), row_tokens=50))
    with pytest.raises(UserError, match="no such file or folder"):
        run(make_recipe(**mixed(tmp_path / "nowhere")), tmp_path / "run")
    with pytest.raises(UserError, match=r"lies inside the data of data\.mix"):
        run(make_recipe(**mixed(mix_dir)), mix_dir / "run")
    for share in (0, 1, -0.1):
        with pytest.raises(ValidationError, match="share"):
            make_recipe(**mixed(mix_dir, share=share))
    with pytest.raises(ValidationError, match="no samples to mix it into; give --data"):
        make_recipe(**{"data": {"mix": {"path": "m", "share": 0.2}}})


def test_a_run_is_bound_to_its_mix(make_recipe: Recipes, make_import: Builds, tmp_path: Path) -> None:
    folder = make_import([short("p0"), short("p1")])
    recipe = make_recipe(**mixed(folder), max_steps=1)
    run(recipe, tmp_path / "run")
    (tmp_path / "run" / "final").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"data.mix.share=0.4, now it is 0.3"):
        run(make_recipe(**mixed(folder, share=0.3), max_steps=1), tmp_path / "run")
    with pytest.raises(UserError, match=r"data.mix=.*now it is None"):
        run(make_recipe(max_steps=1), tmp_path / "run")
    other = make_import([short("p0"), short("p2")], name="other")
    (folder / "data" / "samples.parquet").write_bytes((other / "data" / "samples.parquet").read_bytes())
    with pytest.raises(UserError, match="mix='"):
        run(recipe, tmp_path / "run")


def test_the_plan_and_the_dry_run_show_both(
    tiny_model_dir: Path, build_dir: Path, mix_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(tiny_model_dir), "--data", str(build_dir)]
    more = ["samples_per_step=5", "epochs=2", "objective.name=dpo"]
    command = [*given, f"data.mix.path={mix_dir}", "data.mix.share=0.4", *more]
    assert main(["run", *command, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "6 long + 4 short samples (data.mix)" in said
    assert "6 samples and 5 of data.mix" in said
    plans = []
    for name, words in (("with", command), ("without", [*given, *more])):
        file = tmp_path / f"{name}.json"
        assert main(["plan", *words, "--card", "cpu", "--gpus", "1", "--json", str(file)]) == 0
        plans.append(json.loads(file.read_text()))
    with_mix, without = plans
    counts = [[plan[key] for key in ("samples_per_epoch", "mix_per_epoch", "total_steps")] for plan in plans]
    assert counts == [[10, 4, 4], [6, 0, 3]]
    assert with_mix["largest_row"] == without["largest_row"]
    # A step of five holds two short samples of 7 prompt and 7 response tokens, and three long ones.
    long = without["tokens_per_step"] / 5
    assert with_mix["tokens_per_step"] == pytest.approx(3 * long + 2 * 14)
    assert "no samples to mix it into" not in capsys.readouterr().err
    assert main(["plan", *given[:2], f"data.mix.path={mix_dir}", "data.mix.share=0.4"]) == 2
    assert "no samples to mix it into" in capsys.readouterr().err


def test_pairs_are_imported_into_the_run(
    tiny_model_dir: Path, build_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f" It is {n}.", "rejected": " No."} for n in range(3)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["dtype=float32", "lora.rank=4", "epochs=1", "samples_per_step=4", "recompute=none"]
    command = ["run", "--model", str(tiny_model_dir), "--data", str(build_dir), "-o", str(tmp_path / "run"), *small]
    mix = [f"data.mix.path={pairs}", "data.mix.share=0.25"]
    assert main([*command, *mix, "objective.name=solopo"]) == 2
    assert "needs critical chunks, which pairs do not have" in capsys.readouterr().err
    assert main([*command, *mix]) == 0
    assert (tmp_path / "run" / "mix-data" / "manifest.json").is_file()
    assert sum(line["mix"] for line in lines_of(tmp_path / "run" / "metrics.jsonl")) == 2
    pairs.unlink()
    assert main([*command, *mix]) == 0
    assert "already finished" in capsys.readouterr().err
