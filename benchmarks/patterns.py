"""How it is computed: the reference pattern, separate rows, our shared prompt, and TRL's CPOTrainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from logodata.contract import PreferenceSample
from logotrain.attention.context_parallel import ALONE, ContextGroup
from logotrain.attention.shared_prefix import choose_backend, use_shared_prefix
from logotrain.loss.logprobs import LogprobModel, split_logprobs
from logotrain.model.recompute import checkpoint_layers, compile_layers
from logotrain.recipe.objectives import CpoSettings, DpoSettings
from logotrain.recipe.settings import Recompute, TrainRecipe
from logotrain.rows.collate import Collator
from shape import BOS, EOS, UNKNOWN

Attention = Literal["auto", "flash", "flex", "sdpa"]
"""As recipes name what computes it."""

Logprobs = Callable[[], list[Tensor]]
"""Token log-probabilities of each response, [R_j], with a graph behind them."""


def reference_pattern(model: PeftModel, sample: PreferenceSample, device: torch.device) -> Logprobs:
    """M+1 full rows in one batch, the logits of all tokens, log-softmax of all of them in float32."""
    responses = [sample.chosen.token_ids, *(response.token_ids for response in sample.rejected)]
    ids = torch.tensor([sample.prompt_ids + response for response in responses], device=device)
    first = len(sample.prompt_ids) - 1

    def logprobs() -> list[Tensor]:
        with autocast(device):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        scored = logits[:, :-1].float().log_softmax(dim=-1).gather(2, ids[:, 1:, None])
        return list(scored[:, first:, 0])

    return logprobs


def separate_rows(model: PeftModel, sample: PreferenceSample, device: torch.device) -> Logprobs:
    """M+1 full rows, one after the other, logits of response tokens only."""
    responses = [sample.chosen.token_ids, *(response.token_ids for response in sample.rejected)]
    rows = [torch.tensor([sample.prompt_ids + response], device=device) for response in responses]
    first = len(sample.prompt_ids)

    def logprobs() -> list[Tensor]:
        found = []
        for ids in rows:
            targets = ids[0, first:]
            with autocast(device):
                logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(targets) + 1).logits[0, :-1]
            found.append(logits.float().log_softmax(dim=-1).gather(1, targets[:, None])[:, 0])
        return found

    return logprobs


def shared_prefix(
    model: PeftModel,
    sample: PreferenceSample,
    device: torch.device,
    stack: ExitStack,
    *,
    recompute: Recompute,
    compiled: bool = False,
    attention: Attention = "auto",
    group: ContextGroup = ALONE,
    parts: int = 1,
) -> Logprobs:
    """The trainer's own code: its rows, attention, recomputation and log-probabilities, and no other here.

    ``group`` are the processes that compute the row together, and ``parts`` divides its length.
    """
    causal_lm = model.get_base_model()
    backend, _ = choose_backend(attention, device, causal_lm.dtype)
    stack.enter_context(use_shared_prefix(causal_lm, backend))
    if compiled:
        compile_layers(causal_lm)
    checkpoint_layers(causal_lm, recompute)
    scorer = LogprobModel(model, autocast=torch.bfloat16 if causal_lm.dtype == torch.bfloat16 else None)
    recipe = TrainRecipe.model_validate({"model": "random", "positions": {"mode": "natural"}, "compile": compiled})
    scorer.context_group = group
    collator = Collator.of(recipe, causal_lm.config.max_position_embeddings).split(parts)
    row = collator([(0, sample)]).to(device)
    return lambda: split_logprobs(scorer(row), row)[0].responses


def reference_sums(model: PeftModel, sample: PreferenceSample, device: torch.device) -> Tensor:
    """Log-probability of each response before training, [1 + M], adapters included: what TRL's DPO takes for its
    reference if the model has adapters already."""
    with torch.no_grad():
        return torch.stack([values.sum() for values in separate_rows(model, sample, device)()])


def recompute_all(model: PeftModel, *, compiled: bool = False) -> PeftModel:
    """Recompute every layer in the backward pass, by transformers' own means."""
    if compiled:
        compile_layers(model.get_base_model())
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    return model


def autocast(device: torch.device) -> Any:
    """On a GPU transformers' Trainer and TRL run a bfloat16 model under autocast; on a CPU all is float32."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


# TRL: its trainer, from text on.


def trl_cpo(
    model: PeftModel, sample: PreferenceSample, settings: CpoSettings, device: torch.device, folder: str, **changes: Any
) -> Callable[[], Tensor]:
    """``compute_loss`` of TRL's CPOTrainer on the sample's pairs, M of them, as one batch.

    Args:
        model: TRL's own tree; it sets hooks and recomputation.
        sample: its ids reach TRL as words, and are checked after TRL's tokenisation and collation.
        settings: TRL's ``beta`` and ``cpo_alpha``.
        device: where.
        folder: for the trainer's output, of which there is none.
        changes: settings of CPOConfig that are not its defaults.
    """
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    disable_progress_bar()
    pairs = [(sample.chosen.token_ids, rejected.token_ids) for rejected in sample.rejected]
    words = [
        {"prompt": _words(sample.prompt_ids), "chosen": _words(chosen), "rejected": _words(rejected)}
        for chosen, rejected in pairs
    ]
    length = len(sample.prompt_ids) + len(sample.chosen.token_ids)
    on_cpu = device.type == "cpu"
    arguments = CPOConfig(
        output_dir=folder,
        beta=settings.beta,
        cpo_alpha=settings.sft_weight,
        max_length=length,
        per_device_train_batch_size=len(pairs),
        bf16=not on_cpu,
        use_cpu=on_cpu,
        report_to="none",
        remove_unused_columns=False,  # TRL's collator wants it
        **changes,
    )
    trainer: Any = CPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(words),
        processing_class=word_tokenizer(model.config.vocab_size),
    )
    if arguments.gradient_checkpointing:  # transformers' Trainer does this when training starts
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments.gradient_checkpointing_kwargs)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(pairs))])
    expected = [[sample.prompt_ids + response for response in side] for side in zip(*pairs, strict=True)]
    if [batch["chosen_input_ids"].tolist(), batch["rejected_input_ids"].tolist()] != expected:
        raise AssertionError("TRL's batch does not hold the sample's ids")
    batch = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}

    def loss() -> Tensor:
        with autocast(device):
            value: Tensor = trainer.compute_loss(model, batch)
        return value

    return loss


def trl_dpo(
    model: PeftModel,
    sample: PreferenceSample,
    settings: DpoSettings,
    device: torch.device,
    folder: str,
    *,
    reference: Tensor | None = None,
) -> Callable[[], Tensor]:
    """``compute_loss`` of TRL's DPOTrainer on the sample's pairs, M of them, as one batch.

    Args:
        model: TRL's own tree; it replaces the forward, so that logits are computed of responses only.
        sample: as for :func:`trl_cpo`.
        settings: TRL's ``beta``.
        device: where.
        folder: for the trainer's output.
        reference: [1 + M], log p_ref of each response, where TRL shall not compute it in every step, as it does unless
            told otherwise. Its own way to have them beforehand first hashes all weights.
    """
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl import DPOConfig, DPOTrainer

    disable_progress_bar()
    pairs = [(sample.chosen.token_ids, rejected.token_ids) for rejected in sample.rejected]
    words = [  # without a space at the end, where TRL looks for the end of sequence
        {"prompt": _words(sample.prompt_ids), "chosen": _words(chosen).strip(), "rejected": _words(rejected).strip()}
        for chosen, rejected in pairs
    ]
    on_cpu = device.type == "cpu"
    arguments = DPOConfig(
        output_dir=folder,
        beta=settings.beta,
        max_length=len(sample.prompt_ids) + len(sample.chosen.token_ids),
        per_device_train_batch_size=len(pairs),
        bf16=not on_cpu,
        use_cpu=on_cpu,
        report_to="none",
        remove_unused_columns=False,
    )
    trainer: Any = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(words),
        processing_class=word_tokenizer(model.config.vocab_size),
    )
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments.gradient_checkpointing_kwargs)
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(pairs))])
    rows = [sample.prompt_ids + response for side in zip(*pairs, strict=True) for response in side]
    if batch["input_ids"].tolist() != rows:
        raise AssertionError("TRL's batch does not hold the sample's ids")
    batch = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
    if reference is not None:
        trainer.precompute_ref_logps = True
        batch |= {"ref_chosen_logps": reference[:1].expand(len(pairs)), "ref_rejected_logps": reference[1:]}

    def loss() -> Tensor:
        with autocast(device):
            value: Tensor = trainer.compute_loss(model, batch)
        return value

    return loss


def trl_recomputes() -> bool:
    """TRL's own setting of gradient checkpointing."""
    from trl.experimental.cpo import CPOConfig

    return bool(CPOConfig.__dataclass_fields__["gradient_checkpointing"].default)


_SPECIAL = {UNKNOWN: "<unk>", BOS: "<s>", EOS: "</s>"}


def _word(token: int) -> str:
    return _SPECIAL.get(token, str(token))


def _words(ids: Sequence[int]) -> str:
    return "".join(f"{_word(token)} " for token in ids)


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Token id 17 is the word "17"."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    unknown, bos, eos = _SPECIAL.values()
    backend = Tokenizer(models.WordLevel({_word(token): token for token in range(vocabulary)}, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=unknown, bos_token=bos, eos_token=eos, pad_token=eos
    )
