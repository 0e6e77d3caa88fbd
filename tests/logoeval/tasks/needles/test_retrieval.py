"""The retrieval score: traces against full attention matrices, scores by hand, the command from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from logodata.common.errors import UserError
from logodata.common.files import write_json
from logodata.prompts import encode_text
from logoeval.cli import main
from logoeval.compare.compare import compare
from logoeval.recipe.settings import EvalRecipe
from logoeval.run import evaluate
from logoeval.session import Session
from logoeval.tasks.needles import attention_trace, heads
from logoeval.tasks.needles.attention_trace import check_model, most_attended, trace_answers
from logoeval.tasks.needles.haystacks import Haystack
from logoeval.tasks.needles.heads import (
    Head,
    Heads,
    Needles,
    choose_heads,
    copied_tokens,
    decode_copies,
    encode_copies,
    find_needles,
    score_sample,
    shares,
)
from logoeval.tasks.needles.placement import SampleBuilder
from logoeval.tasks.needles.saw_said import gold_answer, saw_said
from logoeval.tasks.needles.settings import NiahSettings, RetrievalSettings
from tests.conftest import make_model
from tests.logoeval.conftest import FakeEngine
from tests.logoeval.pages import render

VOCABULARY = 300


def models() -> dict[str, Callable[[], Any]]:
    def qwen2() -> Any:
        from transformers import Qwen2Config, Qwen2ForCausalLM

        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=1,
            initializer_range=0.15,
        )
        return Qwen2ForCausalLM(config).eval()

    def adapted() -> Any:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=["q_proj", "k_proj"], init_lora_weights=False)
        return get_peft_model(make_model(VOCABULARY), config).get_base_model()

    return {
        "grouped": lambda: make_model(VOCABULARY),
        "all heads": lambda: make_model(VOCABULARY, num_key_value_heads=4),
        "one key head": qwen2,
        "adapter": adapted,
    }


def full_attention(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Any:
    """The same from complete attention matrices: [steps, layers, heads]."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        found = model(torch.tensor([[*prompt, *answer[:-1]]]), output_attentions=True).attentions
    model.set_attn_implementation(before)
    return np.stack([layer[0, :, len(prompt) - 1 :].argmax(-1).T.numpy() for layer in found], axis=1)


def random_ids(count: int, seed: int = 0) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("name", models())
@pytest.mark.parametrize("held", [1 << 22, 2048])
def test_trace_is_that_of_full_attention_matrices(name: str, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_trace, "_HELD", held)  # the smaller one: many tiles, one step at a time
    model = models()[name]()
    prompt, answers = random_ids(90), [random_ids(70, 1), [], random_ids(5, 2)]
    traces = trace_answers(model, prompt, answers)
    assert [trace.shape[0] for trace in traces] == [70, 0, 5]
    for answer, trace in zip(answers, traces, strict=True):
        if answer:
            np.testing.assert_array_equal(trace, full_attention(model, prompt, answer))
    assert model.config._attn_implementation == "sdpa"


def test_own_answer_is_traced_as_it_was_decoded() -> None:
    """One-token steps of a greedy generation with eager attention see the same."""
    model, prompt = make_model(VOCABULARY), random_ids(60)
    from transformers.cache_utils import DynamicCache

    cache, token, answer, rows = DynamicCache(config=model.config), prompt[-1], [], []
    with torch.inference_mode():
        model(torch.tensor([prompt[:-1]]), past_key_values=cache, logits_to_keep=1)
        model.set_attn_implementation("eager")
        for _ in range(12):
            output = model(torch.tensor([[token]]), past_key_values=cache, output_attentions=True)
            token = int(output.logits[0, -1].argmax())
            answer.append(token)
            rows.append([layer[0, :, -1].argmax(-1).tolist() for layer in output.attentions])
    model.set_attn_implementation("sdpa")
    (trace,) = trace_answers(model, prompt, [answer])
    assert trace.tolist() == rows


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize(("heads", "positions"), [(4, 3000), (16, 3000), (16, 12000)])
def test_nothing_kept_or_made_grows_with_heads_times_context(
    heads: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_trace, "_HELD", 8192)
    query, key = torch.randn(heads, 1, 8), torch.randn(heads // 2, positions, 8)
    with Largest() as largest:
        where = most_attended(query, key)
    assert where.shape == (heads, 1)
    assert largest.numel <= max(8192, key.numel())  # a view of all keys, not a copy of them
    expected = torch.einsum("kgd,ktd->kgt", query.reshape(heads // 2, 2, 8), key).argmax(-1).reshape(heads, 1)
    assert torch.equal(where, expected)


def test_no_logits_of_all_positions_are_made() -> None:
    model, prompt = make_model(5000), random_ids(200)
    with Largest() as largest:
        trace_answers(model, prompt, [random_ids(3)])
    assert largest.numel <= max(parameter.numel() for parameter in model.parameters())
    assert largest.numel < 200 * 5000


@pytest.mark.parametrize(
    "config",
    [{"sliding_window": 16}, {"sliding_window": None, "layer_types": ["full_attention", "sliding_attention"]}],
)
def test_models_that_do_not_look_everywhere_are_refused(config: dict[str, Any]) -> None:
    from transformers import MistralConfig

    with pytest.raises(UserError, match="needs full attention, this model has sliding_attention"):
        check_model(MistralConfig(num_hidden_layers=2, **config))


# By hand: two needles, "7 8 7" at positions 2-4 and "9" at 6. Token 7 stands twice in the first.
NEEDLES = Needles(places={2: 0, 3: 1, 4: 2, 6: 3}, token_ids=(7, 8, 7, 9), sizes=(3, 1))
ANSWER = [7, 8, 5, 9, 7]
LOOKS = {
    0: [2, 3, 4, 6, 4],  # every token, each at its own place; at 4 once without its token, once with it
    1: [2, 2, 2, 2, 2],  # only the first place, and it holds the token at steps 0 and 4: copied once
    2: [4, 7, 0, 7, 0],  # the other 7 counts as much as the first
    3: [6, 6, 6, 3, 6],  # inside needles, never on the token that is generated
}


def toy() -> Any:
    trace = np.array([LOOKS[head] for head in range(4)]).T[:, None, :]  # [steps, 1 layer, 4 heads]
    return copied_tokens(trace, ANSWER, NEEDLES)


def test_scores_by_hand() -> None:
    copies = toy()
    assert copies[0].astype(int).tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    expected = [[1, 1], [1 / 3, 0], [1 / 3, 0], [0, 0]]
    np.testing.assert_allclose(shares(copies, NEEDLES.sizes)[0], expected)
    heads = [Head(layer=0, head=head, score=1) for head in (1, 2)]
    result = score_sample(copies, NEEDLES.sizes, heads)
    assert result.score == pytest.approx((1 / 3 + 0 + 1 / 3 + 0) / 4)
    assert result.seen == (True, False)  # head 1 copies the beginning of the first needle
    assert score_sample(copies, NEEDLES.sizes, heads[1:]).seen == (False, False)
    assert score_sample(copies, NEEDLES.sizes, []).score == 0


def test_records_keep_what_was_copied() -> None:
    copies = toy()
    record = json.loads(json.dumps(encode_copies(copies, NEEDLES.sizes)))
    assert record == {"0.0": "111 1", "0.1": "100 0", "0.2": "001 0"}
    np.testing.assert_array_equal(decode_copies(record, (1, 4), NEEDLES.sizes), copies)


def test_heads_under_a_tenth_are_dropped_and_ten_are_used(tmp_path: Path) -> None:
    scores = np.array([[0.1, 0.0999, 0.5, 0.2], [0.3] * 4, [0.1] * 4, [0.9, 0.0, 0.0, 0.8]])
    found = choose_heads(scores)
    assert [(head.layer, head.head) for head in found[:4]] == [(3, 0), (3, 3), (0, 2), (1, 0)]
    assert len(found) == 13
    heads = Heads(
        model="m",
        model_fingerprint="f",
        adapter_fingerprint=None,
        calibration={},
        num_layers=4,
        num_heads=4,
        retrieval_heads=found,
    )
    assert len(heads.best) == 10
    write_json(tmp_path / "heads.json", heads.to_json())
    assert Heads.read(tmp_path / "heads.json", (4, 4)) == heads
    with pytest.raises(UserError, match="heads of a model with 4 layers of 4, this one has 2 of 4"):
        Heads.read(tmp_path / "heads.json", (2, 4))
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="schema version None, this program reads 1"):
        Heads.read(tmp_path / "other.json", (4, 4))
    with pytest.raises(UserError, match="no such file"):
        Heads.read(tmp_path / "none.json", (4, 4))


def test_needles_are_found_among_the_prompts_tokens(tiny_tokenizer: Any) -> None:
    sample = SampleBuilder(tiny_tokenizer, Haystack("essay"), seed=0, num_values=4).build(1000, 0)
    needles = find_needles(tiny_tokenizer, sample.prompt_ids, sample.values)
    places = sorted(needles.places)
    assert [sample.prompt_ids[place] for place in places] == list(needles.token_ids)
    assert tiny_tokenizer.decode(needles.token_ids) == "".join(sample.values)
    assert needles.sizes == (7, 7, 7, 7)
    gold = gold_answer(tiny_tokenizer, sample.values)
    first, second, third, last = sample.values
    assert tiny_tokenizer.decode(gold) == f" {first}, {second}, {third}, and {last}."
    assert tiny_tokenizer.decode(gold_answer(tiny_tokenizer, [first])) == f" {first}."


def test_a_value_counts_wherever_it_stands_alone(tiny_tokenizer: Any) -> None:
    ids = encode_text(tiny_tokenizer, "It is 123. No 91234 but 123, 1230 or x123.")
    needles = find_needles(tiny_tokenizer, ids, ["123"])
    assert needles.sizes == (3,)
    assert sorted(needles.places.values()) == [0, 0, 1, 1, 2, 2]
    # After a space it begins with another token than after a bracket.
    ids = encode_text(tiny_tokenizer, "It is o5 (o5) and o5.")
    needles = find_needles(tiny_tokenizer, ids, ["o5"])
    assert [number for _, number in sorted(needles.places.items())] == [0, 1, 0, 1]
    assert all(ids[place] == needles.token_ids[number] for place, number in needles.places.items())
    with pytest.raises(UserError, match="the value '55' is not among the prompt's tokens"):
        find_needles(tiny_tokenizer, ids, ["55"])


def test_table_of_saw_and_said() -> None:
    assert saw_said([True, True, False, False, True], [True, False, True, False, True]) == {
        "saw_and_said": 2,
        "saw_only": 1,
        "said_only": 1,
        "neither": 1,
    }


SETTINGS = NiahSettings(
    lengths=(700, 800),
    num_samples=3,
    haystacks=("noise",),
    max_new_tokens=8,
    retrieval=RetrievalSettings(num_calibration=2),
)


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch, fake_answer: Any) -> Callable[[int], None]:
    """Give a function that sets what the model does: head 1.``head`` looks at the first place in the prompt of each
    token to come, the others at position 0; answers are made up."""

    def set_up(head: int) -> None:
        def trace(model: Any, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Any]:
            traces = []
            for answer in answers:
                found = np.zeros((len(answer), 2, 4), dtype=np.int64)
                found[:, 1, head] = [prompt.index(token) if token in prompt else 0 for token in answer]
                traces.append(found)
            return traces

        monkeypatch.setattr(attention_trace, "trace_answers", trace)
        monkeypatch.setattr(Session, "engine", FakeEngine(fake_answer))

    return set_up


def test_heads_are_found_apart_frozen_and_shared(
    tiny_model_dir: Path, tmp_path: Path, looking: Callable[[int], None]
) -> None:
    before, after, alone = (tmp_path / name for name in ("before", "after", "alone"))
    recipe = EvalRecipe(model=str(tiny_model_dir), niah=SETTINGS)
    looking(2)
    first = evaluate(recipe, ["niah"], before).tasks["niah"]
    heads = json.loads((before / "heads.json").read_text(encoding="utf-8"))
    assert {(head["layer"], head["head"]) for head in heads["retrieval_heads"]} == {(1, 2)}
    calibration = set(heads["calibration"].values())
    assert len(calibration) == 4
    assert not calibration & {sample.prompt_hash for sample in first.samples}
    for sample in first.samples:
        scores, seen, found = sample.scores, sample.facts["seen"], sample.facts["found"]
        assert scores["retrieval_forced"] == scores["retrieval_forced_own"] > 0
        assert scores["retrieval"] == 0  # the made-up answers hold no number
        assert scores["saw"] == np.mean(seen)
        assert sum(scores[key] for key in ("saw_and_said", "saw_only", "said_only", "neither")) == 1
        assert scores["said_minus_saw"] == pytest.approx(np.mean(found) - np.mean(seen))

    looking(3)  # the trained model finds with another head
    frozen = SETTINGS.model_copy(
        update={"retrieval": SETTINGS.retrieval.model_copy(update={"heads": before / "heads.json"})}
    )
    other = evaluate(recipe.model_copy(update={"niah": frozen}), ["niah"], after).tasks["niah"]
    assert all(sample.scores["retrieval_forced"] == 0 for sample in other.samples)
    assert all(sample.scores["retrieval_forced_own"] > 0 for sample in other.samples)
    assert any("heads of" in note and "before" in note for note in other.notes)
    comparison = compare([before, after])
    (row,) = [row for row in comparison.rows if row.metric.key == "retrieval_forced" and not row.slice]
    assert row.differences[0].verdict == "fell"
    page = render(comparison)
    assert "What the model saw and what it said" in page
    seen = sum(sum(sample.facts["seen"]) for sample in first.samples)
    assert f">{seen} (" in page
    assert f">{24 - seen} (" in page

    with pytest.raises(UserError, match="started with retrieval_heads="):
        evaluate(recipe, ["niah"], after)
    evaluate(recipe, ["niah"], alone)  # own heads: another measure
    with pytest.raises(UserError, match="niah: retrieval_heads is"):
        compare([before, alone])


def test_interrupted_traces_go_on(tiny_model_dir: Path, tmp_path: Path, fake_answer: Any) -> None:
    recipe = EvalRecipe(model=str(tiny_model_dir), niah=SETTINGS.model_copy(update={"lengths": (700,)}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "engine", FakeEngine(fake_answer))
        patch.setattr(heads, "MIN_SCORE", -1.0)  # a random model has no retrieval heads
        whole = evaluate(recipe, ["niah"], tmp_path / "whole").tasks["niah"]
        count = 0

        def three(*arguments: Any) -> Any:
            nonlocal count
            if count == 3:
                raise KeyboardInterrupt
            count += 1
            return trace_answers(*arguments)

        patch.setattr(attention_trace, "trace_answers", three)
        with pytest.raises(KeyboardInterrupt):
            evaluate(recipe, ["niah"], tmp_path / "halved")
        assert not (tmp_path / "halved" / "results.json").exists()
        patch.setattr(attention_trace, "trace_answers", trace_answers)
        assert evaluate(recipe, ["niah"], tmp_path / "halved").tasks["niah"].samples == whole.samples
        lines = (tmp_path / "halved" / "predictions" / "niah-retrieval.jsonl").read_text(encoding="utf-8").splitlines()
        assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 3


def test_other_engines_are_refused_in_one_line(tiny_model_dir: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["niah", "--model", str(tiny_model_dir), "-o", str(tmp_path / "out")]
    assert main([*command, "--retrieval", "engine.kind=vllm"]) == 2
    error = capsys.readouterr().err
    assert "reads the model's attention, which engine.kind=vllm does not show (use engine.kind=transformers)" in error
    assert error.count("\n") == 1
    assert main([*command, "--retrieval", "thinking_tokens=9", "niah.lengths=[1024]"]) == 2
    assert "this model reasons between the two (set thinking_tokens=0)" in capsys.readouterr().err
    assert main([*command, "--heads", "heads.json"]) == 2
    assert "--heads without --retrieval" in capsys.readouterr().err
