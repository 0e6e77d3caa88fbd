"""Tasks over checkpoints: adapters put on one base, the curve, its resumption, its figure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from logodata.common.errors import UserError
from logodata.models.adapters import write_base_config
from logodata.models.loading import load_config, load_model
from logoeval.checkpoints import evaluate_checkpoints, find_adapters
from logoeval.cli import main
from logoeval.compare.compare import compare
from logoeval.recipe.settings import EvalRecipe
from logoeval.records import Results, read_results, write_results
from logoeval.report.sections.curves import read_curves
from logoeval.session import Session, Weights
from logoeval.tasks.needles.settings import NiahSettings, RetrievalSettings
from tests.conftest import make_model
from tests.logoeval.conftest import FakeEngine
from tests.logoeval.pages import render

IDS = torch.arange(3, 43)[None]


@pytest.fixture(params=[False, True], ids=["lora", "lora and embedding"])
def run(request: pytest.FixtureRequest, tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """A training run's folder with three checkpoints; the last was trained with another RoPE."""
    from peft import LoraConfig, get_peft_model

    for step in (4, 8, 12):
        model = make_model(len(tiny_tokenizer))
        torch.manual_seed(step)
        config = LoraConfig(
            r=4,
            target_modules=["q_proj", "v_proj"],
            modules_to_save=["embed_tokens"] if request.param else None,
            init_lora_weights=False,
        )
        adapted = get_peft_model(model, config)
        if request.param:
            with torch.no_grad():
                adapted.get_input_embeddings().weight.add_(torch.randn_like(adapted.get_input_embeddings().weight))
        folder = tmp_path / "run" / "checkpoints" / f"step-{step}" / "adapter"
        adapted.save_pretrained(folder, save_embedding_layers=False)
        if step == 12:
            model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
        write_base_config(folder, model.config)
    (tmp_path / "run" / "checkpoints" / "step-16.damaged").mkdir()
    return tmp_path / "run"


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def shared_logits(weights: Weights, model: str, adapter: Path | None) -> torch.Tensor:
    """Logits of a session that shares its weights with others; the session ends."""
    return logits(Session(EvalRecipe(model=model, adapter=adapter), weights).model)


def test_each_adapter_acts_as_if_it_were_loaded_alone(run: Path, tiny_model_dir: Path) -> None:
    weights, model = Weights(), str(tiny_model_dir)
    adapters = find_adapters(run / "checkpoints")
    assert list(adapters) == [4, 8, 12]
    bare = logits(load_model(model))
    assert torch.equal(shared_logits(weights, model, None), bare)
    for adapter in (*adapters.values(), adapters[4]):
        alone = logits(load_model(model, adapter=adapter))
        assert torch.equal(shared_logits(weights, model, adapter), alone)
        assert not torch.allclose(alone, bare, atol=1e-2)
    assert torch.equal(shared_logits(weights, model, None), bare)  # nothing of them is left
    assert load_config(str(tiny_model_dir), adapter=adapters[12]).rope_parameters["rope_type"] == "linear"


def test_weights_are_read_for_the_first_adapter_and_for_each_further_one(
    run: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        loads.append(arguments)
        return load_model(*arguments, **keywords)

    monkeypatch.setattr("logoeval.session.load_model", counted)
    weights, model = Weights(), str(tiny_model_dir)
    adapters = find_adapters(run / "checkpoints")
    expected = ((None, 1), (None, 1), (adapters[4], 1), (adapters[8], 2), (None, 3), (adapters[12], 4))
    for adapter, num_loads in expected:  # the last has another RoPE
        shared_logits(weights, model, adapter)
        assert len(loads) == num_loads, adapter


@pytest.mark.parametrize(
    ("lora", "save_embeddings"),
    [
        ({"bias": "all"}, False),
        ({"init_lora_weights": "pissa"}, False),
        ({"layer_replication": [(0, 2), (1, 2)]}, False),
        ({}, True),
    ],
    ids=str,
)
def test_an_adapter_that_changes_the_weights_themselves_leaves_nothing(
    lora: dict[str, Any], save_embeddings: bool, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = make_model(269, attention_bias=True)
    base.save_pretrained(tmp_path / "base")
    adapters = []
    for number, settings in enumerate((lora, {})):
        model = make_model(269, attention_bias=True)
        adapted = get_peft_model(
            model, LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "init_lora_weights": False, **settings})
        )
        changed = [name for name, _ in model.named_parameters() if "lora" in name or "bias" in name or "embed" in name]
        with torch.no_grad():
            for name in changed:
                model.get_parameter(name).add_(0.5)
        adapters.append(tmp_path / str(number))
        saved = save_embeddings and not number
        adapted.save_pretrained(str(adapters[-1]), save_embedding_layers=saved)
    weights, model = Weights(), str(tmp_path / "base")
    bare = logits(base)
    for adapter in (None, *adapters, None):
        alone = logits(load_model(model, adapter=adapter))
        assert torch.equal(shared_logits(weights, model, adapter), alone)
        assert torch.equal(alone, bare) == (adapter is None)


@pytest.fixture
def recipe(tiny_model_dir: Path) -> EvalRecipe:
    niah = NiahSettings(
        lengths=(700,),
        num_samples=3,
        haystacks=("noise",),
        max_new_tokens=6,
        retrieval=RetrievalSettings(num_calibration=1),
    )
    return EvalRecipe(model=str(tiny_model_dir), niah=niah)


@pytest.mark.parametrize("run", [False], indirect=True)
def test_curve_goes_on_where_it_stopped(
    run: Path, recipe: EvalRecipe, tmp_path: Path, fake_answer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logoeval.tasks.needles.heads.MIN_SCORE", -1.0)  # a random model has no retrieval heads
    used = []

    def engine(session: Session) -> FakeEngine:
        used.append(session.settings.adapter)
        shift = len(str(session.settings.adapter))
        return FakeEngine(
            lambda request: fake_answer(replace(request, prompt_ids=(*request.prompt_ids, shift))),
            limit=1 if len(used) == 3 else None,
        )

    monkeypatch.setattr(Session, "engine", property(engine))
    out = tmp_path / "curve"
    with pytest.raises(KeyboardInterrupt):
        evaluate_checkpoints(recipe, "niah", run / "checkpoints", out)
    assert not (out / "results.json").exists()  # no curve before all steps are there
    evaluate_checkpoints(recipe, "niah", run / "checkpoints", out)
    assert used[:3] == [None, None, run / "checkpoints" / "step-4" / "adapter"]
    assert used.count(None) == 2  # to answer, and for its name: the base model is not measured again

    curve = read_results(out).curve
    assert curve is not None
    assert [point.step for point in curve.points] == [0, 4, 8, 12]
    assert len({point.adapter_fingerprint for point in curve.points}) == 4
    for point in curve.points:
        here = read_results(out / f"step-{point.step}").tasks["niah"]
        values = {value.metric: value for value in point.values}
        for row in here.summary:
            if not row.slice:
                assert (values[row.metric].value, values[row.metric].low) == (row.value, row.low)
    # Every step is measured on the base model's heads, so any two compare; their difference is the curve's.
    (row,) = [row for row in compare([out / "step-0", out / "step-12"]).rows if row.metric.key == "retrieval_forced"]
    last = next(value for value in curve.points[-1].values if value.metric == "retrieval_forced")
    change = row.differences[0].change
    assert (change.value, change.low, change.high) == (last.change, last.change_low, last.change_high)

    shutil.copytree(out, tmp_path / "other")
    page = render(compare([out / "step-0", out / "step-12"]), curves=[out, tmp_path / "other"])
    assert "Needle in a haystack over training" in page
    assert page.count("by training step for") == 4
    written = (out / "results.json").read_bytes()
    evaluate_checkpoints(recipe, "niah", run / "checkpoints", out)  # all steps are finished
    assert (out / "results.json").read_bytes() == written

    with pytest.raises(UserError, match=r"holds a curve of niah \(give the other task another -o\)"):
        evaluate_checkpoints(recipe, "ppl", run / "checkpoints", out)
    base = json.loads((out / "step-0" / "results.json").read_text())
    base["tasks"]["niah"]["provenance"]["engine"] = "transformers 4.1"  # as of a step that was measured before
    (out / "step-0" / "results.json").write_text(json.dumps(base))
    for other in (
        lambda: evaluate_checkpoints(recipe, "niah", run / "checkpoints", out),
        lambda: read_curves([tmp_path / "other", out]),
    ):
        with pytest.raises(UserError, match=r"niah: engine is .* in one and .* in the other"):
            other()


@pytest.mark.parametrize("run", [False], indirect=True)
def test_bad_folders_and_options(run: Path, recipe: EvalRecipe, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(UserError, match=r"holds no checkpoint \(step-N\).*give .*run/checkpoints"):
        find_adapters(run)
    with pytest.raises(UserError, match="holds no checkpoint"):
        find_adapters(tmp_path)
    (run / "checkpoints" / "step-20").mkdir()
    with pytest.raises(UserError, match=r"step-20.*the checkpoint holds no adapter"):
        find_adapters(run / "checkpoints")
    command = ["niah", "--model", recipe.model, "--checkpoints", str(run / "checkpoints"), "-o", str(tmp_path / "out")]
    assert main([*command, "engine.kind=vllm"]) == 2
    assert "(use engine.kind=transformers)" in capsys.readouterr().err
    assert main([*command, "--adapter", str(run)]) == 2
    assert "leave out --adapter" in capsys.readouterr().err
    write_results(tmp_path, Results())
    report = ["compare", str(tmp_path), str(tmp_path), "-o", str(tmp_path / "r.html"), "--curve", str(tmp_path)]
    assert main(report) == 2


@pytest.mark.parametrize("run", [False], indirect=True)
def test_command_from_end_to_end(run: Path, recipe: EvalRecipe, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    command = ["niah", "--model", recipe.model, "--checkpoints", str(run / "checkpoints"), "-o", str(out)]
    settings = ["niah.lengths=[600]", "niah.num_samples=2", "niah.haystacks=[noise]", "niah.max_new_tokens=4"]
    assert main([*command, *settings]) == 0
    shown = capsys.readouterr().out
    assert "Needle recall [95 %]" in shown
    content = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [point["step"] for point in content["curve"]["points"]] == [0, 4, 8, 12]
    lines = (out / "step-8" / "predictions" / "niah.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize("run", [False], indirect=True)
def test_answers_over_checkpoints_are_those_of_each_adapter_alone(
    run: Path, recipe: EvalRecipe, tmp_path: Path, make_build: Callable[..., Path], capsys: Any
) -> None:
    command = ["qa", "--model", recipe.model, "--data", str(make_build()), "qa.max_new_tokens=4"]
    out, adapter = tmp_path / "out", find_adapters(run / "checkpoints")[8]
    assert main([*command, "--checkpoints", str(run / "checkpoints"), "-o", str(out)]) == 0
    assert "F1 [95 %]" in capsys.readouterr().out
    curve = read_results(out).curve
    assert curve is not None
    assert curve.task == "qa"
    assert main([*command, "--adapter", str(adapter), "-o", str(tmp_path / "alone")]) == 0
    alone = read_results(tmp_path / "alone").tasks["qa"]
    assert read_results(out / "step-8").tasks["qa"].samples == alone.samples
    point = next(point for point in curve.points if point.step == 8)
    for row in alone.summary:
        if not row.slice:
            value = next(value for value in point.values if value.metric == row.metric)
            assert (value.value, value.low, value.high) == (row.value, row.low, row.high)

    needles = tmp_path / "needles"
    settings = ["niah.lengths=[600]", "niah.num_samples=2", "niah.haystacks=[noise]", "niah.max_new_tokens=4"]
    checkpoints = ["--checkpoints", str(run / "checkpoints")]
    assert main(["niah", "--model", recipe.model, *checkpoints, *settings, "-o", str(needles)]) == 0
    page = render(compare([out / "step-0", out / "step-8"]), curves=[out, needles])
    assert page.index("Questions on held-out documents over training") < page.index(
        "Needle in a haystack over training"
    )
    recorded = json.loads((out / "results.json").read_text(encoding="utf-8"))
    del recorded["curve"]["task"]  # as results were before answers had curves
    assert Results.from_json(recorded, where="", mend="").curve.task == "niah"
