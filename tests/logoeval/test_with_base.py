"""Base and adapter in one command: the same results as two, one loading, ordinary folders, a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from logodata.common.errors import UserError
from logodata.engines.settings import EngineSettings
from logodata.engines.vllm_engine import VllmEngine
from logodata.models.adapters import write_base_config
from logodata.models.loading import load_model
from logoeval.cli import main
from logoeval.compare.compare import compare
from logoeval.recipe.settings import EvalRecipe
from logoeval.records import Results, read_results
from logoeval.run import evaluate
from logoeval.session import Session
from logoeval.tasks.longbench.settings import LongBenchSettings
from logoeval.tasks.longbench2.settings import LongBench2Settings
from logoeval.tasks.needles.settings import NiahSettings, RetrievalSettings
from logoeval.tasks.pairs import PairsSettings
from logoeval.tasks.perplexity import PerplexitySettings
from logoeval.tasks.ruler.settings import RulerSettings
from logoeval.tasks.short.settings import ShortSettings
from logoeval.with_base import evaluate_with_base
from tests.conftest import make_model
from tests.logoeval.conftest import FakeEngine

NIAH = NiahSettings(lengths=(700,), num_samples=2, haystacks=("noise",), max_new_tokens=6)
PPL = PerplexitySettings(lengths=(32, 64), num_documents=2)


@pytest.fixture
def make_adapter(tmp_path: Path, tiny_tokenizer: Any) -> Callable[..., Path]:
    from peft import LoraConfig, get_peft_model

    def make(*, factor: float = 1.0, **changes: Any) -> Path:
        torch.manual_seed(1)
        model = make_model(**{"vocab_size": len(tiny_tokenizer), **changes})
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(model, lora).save_pretrained(str(tmp_path / "final"))
        if factor != 1:
            model.config.rope_parameters = {"rope_type": "linear", "rope_theta": 10000.0, "factor": factor}
            model.config.max_position_embeddings = int(2048 * factor)
        write_base_config(tmp_path / "final", model.config)
        return tmp_path / "final"

    return make


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The RoPE of each model that was loaded."""
    found: list[Any] = []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        found.append(keywords["config"].rope_parameters["rope_type"])
        return load_model(*arguments, **keywords)

    monkeypatch.setattr("logoeval.session.load_model", counted)
    return found


def comparable(results: Results) -> dict[str, Any]:
    """Everything but when it was done and how long it took."""
    content = results.model_dump()
    for task in content["tasks"].values():
        task["provenance"] = {key: value for key, value in task["provenance"].items() if key not in ("date", "seconds")}
    return content


def test_one_command_gives_the_results_of_two(
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    make_build: Callable[..., Path],
    tmp_path: Path,
    loads: list[Any],
) -> None:
    recipe = EvalRecipe(
        model=str(tiny_model_dir),
        adapter=make_adapter(),
        niah=NIAH,
        pairs=PairsSettings(data=make_build(), max_new_tokens=6),
        ppl=PPL,
    )
    tasks = ("niah", "pairs", "ppl")
    base, adapter = evaluate_with_base(recipe, tasks, tmp_path / "both")
    assert loads == ["default"]
    together = [comparable(read_results(folder)) for folder in (base, adapter)]
    alone = [
        comparable(evaluate(recipe.model_copy(update={"adapter": None}), tasks, tmp_path / "one")),
        comparable(evaluate(recipe, tasks, tmp_path / "other")),
    ]
    assert together == alone
    assert together[0]["tasks"]["ppl"]["samples"] != together[1]["tasks"]["ppl"]["samples"]
    assert compare([base, adapter]).rows
    # Both are finished: nothing is loaded, and a plain command may go on in either folder.
    evaluate_with_base(recipe, tasks, tmp_path / "both")
    evaluate(recipe, tasks, adapter)
    assert len(loads) == 3


def test_an_adapter_with_another_rope(
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    loads: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = EvalRecipe(model=str(tiny_model_dir), adapter=make_adapter(factor=2.0), ppl=PPL)
    base, adapter = (read_results(folder).tasks["ppl"] for folder in evaluate_with_base(recipe, ["ppl"], tmp_path))
    assert loads == ["default", "linear"]
    bare = evaluate(recipe.model_copy(update={"adapter": None}), ["ppl"], tmp_path / "alone").tasks["ppl"]
    assert base.samples == bare.samples
    assert base.notes[-1] == (
        "the base model is measured with its own RoPE (default) and window (2048); the adapter was trained with "
        "RoPE (linear times 2) and window (4096)"
    )
    assert adapter.samples == evaluate(recipe, ["ppl"], tmp_path / "scaled").tasks["ppl"].samples

    longer = recipe.model_copy(update={"ppl": PerplexitySettings(lengths=(4096,))})
    with pytest.raises(UserError, match=r"needs 4096 positions; .* for 4096, the base model has 2048 .*--with-base"):
        evaluate_with_base(longer, ["ppl"], tmp_path / "longer")
    rows = recipe.model_copy(update={"longbench": LongBenchSettings(data=tmp_path)})
    with pytest.raises(UserError, match=r"cut to other lengths \(set engine\.max_model_len=2048"):
        evaluate_with_base(rows, ["longbench"], tmp_path / "rows")
    questions = recipe.model_copy(update={"longbench2": LongBench2Settings(data=str(tmp_path))})
    with pytest.raises(UserError, match=r": longbench2: the base model has 2048 .* for 4096: .* cut to other lengths"):
        evaluate_with_base(questions, ["longbench2"], tmp_path / "questions")
    same = LongBench2Settings(data="gone", max_prompt_tokens=1000)  # which both windows hold
    given = LongBenchSettings(data="gone", max_prompt_tokens=1000)
    with pytest.raises(UserError, match="gone"):  # and not the windows
        evaluate_with_base(recipe.model_copy(update={"longbench": given}), ["longbench"], tmp_path / "given")
    with pytest.raises(UserError, match="gone: no such file or folder"):
        evaluate_with_base(questions.model_copy(update={"longbench2": same}), ["longbench2"], tmp_path / "questions")
    harness = recipe.model_copy(update={"short": ShortSettings(truncate=True)})
    with pytest.raises(UserError, match=r": short: the base model has 2048 positions"):
        evaluate_with_base(harness, ["short"], tmp_path / "short")
    monkeypatch.setattr("logoeval.tasks.ruler.task.OFFICIAL_LENGTHS", (1024, 2048, 4096))
    lengths = recipe.model_copy(update={"ruler": RulerSettings(tasks=("fwe",))})
    with pytest.raises(
        UserError, match=r"holds the lengths up to 2048, the adapter's up to 4096 \(give ruler\.lengths"
    ):
        evaluate_with_base(lengths, ["ruler"], tmp_path / "lengths")


def test_the_bases_heads_are_measured_on_both_and_a_stopped_run_goes_on(
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    fake_answer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("logoeval.tasks.needles.heads.MIN_SCORE", -1.0)  # a random model has no retrieval heads
    retrieval = NIAH.model_copy(update={"retrieval": RetrievalSettings(num_calibration=1)})
    recipe = EvalRecipe(model=str(tiny_model_dir), adapter=make_adapter(), niah=retrieval)
    limits = {None: None, recipe.adapter: 1}
    answered = []

    def engine(session: Session) -> FakeEngine:
        answered.append(session.settings.adapter)
        return FakeEngine(fake_answer, limit=limits[session.settings.adapter])

    monkeypatch.setattr(Session, "engine", property(engine))
    with pytest.raises(KeyboardInterrupt):
        evaluate_with_base(recipe, ["niah"], tmp_path / "out")
    assert (tmp_path / "out" / "base" / "results.json").is_file()
    limits[recipe.adapter] = None
    answered.clear()
    folders = evaluate_with_base(recipe, ["niah"], tmp_path / "out")
    assert set(answered) == {recipe.adapter}
    base, adapter = (read_results(folder).tasks["niah"] for folder in folders)
    assert base.settings["retrieval_heads"] == adapter.settings["retrieval_heads"]
    assert any("retrieval is measured on the heads of" in text for text in adapter.notes)
    assert compare(folders).rows


class FakeVllm(VllmEngine):
    """Answers in one way with an adapter and in another without."""

    name = "vllm fake"

    def __init__(self, answer: Callable[..., Any], adapter: Path | None, log: list[str]) -> None:
        self._answer, self._adapter, self.log = answer, adapter, log
        log.append(f"open {'with' if adapter else 'without'}")

    def generate(self, requests: Any) -> Any:
        self.log.append("with" if self._adapter else "without")
        return FakeEngine(self._answer).generate(requests)

    def close(self) -> None:
        self.log.append("close")


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (1.0, ["open with", "without", "with"]),
        (2.0, ["open without", "without", "close", "open with", "with"]),
    ],
)
def test_vllm_is_started_once_where_one_rope_serves_both(
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    fake_answer: Any,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    expected: list[str],
) -> None:
    log: list[str] = []

    def open_engine(settings: EngineSettings, model: str, _: object, *, adapter: Path | None = None) -> FakeVllm:
        return FakeVllm(fake_answer, adapter, log)

    monkeypatch.setattr("logoeval.session.open_engine", open_engine)
    adapter = make_adapter(factor=factor)
    recipe = EvalRecipe(model=str(tiny_model_dir), adapter=adapter, engine=EngineSettings(kind="vllm"), niah=NIAH)
    folders = evaluate_with_base(recipe, ["niah"], tmp_path / "out")
    assert log == expected
    assert {read_results(folder).tasks["niah"].provenance.engine for folder in folders} == {"vllm fake"}


def test_a_server_has_the_base_under_the_models_name(
    tiny_model_dir: Path,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    fake_answer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served: list[str | None] = []

    def open_engine(settings: EngineSettings, model: str, _: object, *, adapter: Path | None = None) -> FakeEngine:
        served.append(settings.served_model)
        return FakeEngine(fake_answer)

    monkeypatch.setattr("logoeval.session.open_engine", open_engine)
    engine = EngineSettings(kind="openai", base_urls=("http://127.0.0.1:1/v1",), served_model="logo")
    recipe = EvalRecipe(model=str(tiny_model_dir), adapter=make_adapter(), engine=engine, niah=NIAH)
    evaluate_with_base(recipe, ["niah"], tmp_path / "out")
    assert served == ["logo", None]


def test_command(
    tiny_model_dir: Path, make_adapter: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = make_adapter(), tmp_path / "my runs"
    command = ["ppl", "--model", str(tiny_model_dir), "--with-base", "-o", str(out)]
    settings = ["ppl.protocol=sliding", "ppl.lengths=[16,64]", "ppl.num_documents=2"]
    assert main([*command, "--adapter", str(adapter), *settings]) == 0
    shown = capsys.readouterr().out
    words = shown.split()  # whatever the terminal's width
    assert {"base", "adapter", "verdict", "Perplexity,"} <= set(words)
    assert f"for a page: logoeval compare '{out}/base' '{out}/adapter' -o '{out}/report.html'" in shown
    assert read_results(out / "adapter").tasks["ppl"].settings["stride"] == 8
    assert main(["compare", str(out / "base"), str(out / "adapter"), "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "a window slides over them by 8 tokens at a time" in page
    assert page.count('role="img" aria-label=') == 1
    # Other tasks join them.
    assert main(["run", str(write_recipe(tmp_path, tiny_model_dir, adapter)), "--with-base", "-o", str(out)]) == 0
    assert "Needle recall" in capsys.readouterr().out


def write_recipe(folder: Path, model: Path, adapter: Path) -> Path:
    import yaml

    section = {"adapter": str(adapter), "niah": NIAH.model_dump(mode="json")}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": str(model), "eval": section}), encoding="utf-8")
    return path


def test_faults_are_said_before_any_work(
    tiny_model_dir: Path, make_adapter: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(tiny_model_dir)]
    out = ["-o", str(tmp_path / "out")]
    assert main(["ppl", *model, "--with-base", *out]) == 2
    assert "--with-base without an adapter (give --adapter DIR" in capsys.readouterr().err
    assert main(["niah", *model, "--with-base", "--checkpoints", str(tmp_path), *out]) == 2
    assert "--checkpoints measures the base too" in capsys.readouterr().err
    adapter = make_adapter(num_hidden_layers=3)
    assert main(["ppl", *model, "--adapter", str(adapter), "--with-base", *out]) == 2
    assert "the adapter does not fit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_adapter_leaves_the_engine_as_it_was() -> None:
    engine = VllmEngine.__new__(VllmEngine)
    engine._adapter = "lora"
    bare = engine.without_adapter()
    assert (bare._adapter, engine._adapter) == (None, "lora")
