"""Losses over pairs against TRL's own trainers: the same pairs, padded by TRL's collator there and packed here.

TRL 1.16 by the names of its `loss_type`: `sigmoid` is ours without smoothing, `sigmoid_norm` ours length-normalised,
`ipo` ours. Its smoothed pair is in `aot`, which sorts the pairs of a batch and so is taken one pair at a time.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from samestep.model.losses import cross_entropy
from samestep.model.preference import LOSSES, bradley_terry, ranked_right, sequence_sums
from samestep.recipe.schema import Dpo

pytestmark = pytest.mark.filterwarnings("ignore")  # of TRL and transformers

VOCABULARY, CONTEXT, PAD = 40, 16, 0
PAIRS: list[dict[str, list[int]]] = [
    {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6, 7], "rejected_ids": [8]},
    {"prompt_ids": [9], "chosen_ids": [10, 11], "rejected_ids": [12, 13, 14, 15, 16, 17]},
    {"prompt_ids": [18, 19], "chosen_ids": [20, 21, 22], "rejected_ids": [23, 24, 25]},
    {"prompt_ids": [26, 27, 28, 29], "chosen_ids": [30], "rejected_ids": [31, 32]},
]
Gradients = dict[str, Tensor]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def llama(architecture: str, seed: int) -> Any:
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # so that no two log-probabilities are close
        pad_token_id=PAD,
        num_labels=1,
    )
    return getattr(transformers, architecture)(config)


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="t0")), pad_token="t0", eos_token="t0"
    )


def settings(folder: Path) -> dict[str, Any]:
    return {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}


@pytest.fixture(scope="module")
def dpo_trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=llama("LlamaForCausalLM", seed=1),
        ref_model=llama("LlamaForCausalLM", seed=4),
        args=DPOConfig(**settings(tmp_path_factory.mktemp("dpo")), gradient_checkpointing=False),
        train_dataset=Dataset.from_list([{"prompt": "t1", "chosen": "t2", "rejected": "t3"}]),  # not what is compared
        processing_class=tokenizer(),
    )


def their_dpo(trainer: Any, pairs: list[dict[str, list[int]]]) -> tuple[Tensor, Gradients]:
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, trainer.data_collator(pairs), False)
    loss.backward()
    return loss.detach(), {name: x.grad.clone() for name, x in trainer.model.named_parameters()}


def sequences() -> list[tuple[list[int], int]]:
    """Tokens and the length of the prompt, chosen and rejected of a pair in turn."""
    answers = [(pair, pair[key]) for pair in PAIRS for key in ("chosen_ids", "rejected_ids")]
    return [(pair["prompt_ids"] + answer, len(pair["prompt_ids"])) for pair, answer in answers]


def log_ratios(policy: Any, reference: Any) -> tuple[Tensor, Tensor]:
    """Ours: each sequence in a row of its own, not at its start, without an attention mask beyond the causal one."""
    offset, k = 2, 2 * len(PAIRS)
    targets = torch.full((k, CONTEXT), -100)
    pieces = torch.tensor([[i, offset, offset + len(ids) - 1, i] for i, (ids, _) in enumerate(sequences())])
    for i, (ids, prompt) in enumerate(sequences()):
        targets[i, offset + prompt - 1 : offset + len(ids) - 1] = torch.tensor(ids[prompt:])
    with torch.no_grad():
        theirs, _ = sequence_sums(log_probabilities(reference, targets, offset), targets, pieces)
    ours, counts = sequence_sums(log_probabilities(policy, targets, offset), targets, pieces)
    return ours - theirs, counts


def log_probabilities(model: Any, targets: Tensor, offset: int) -> Tensor:
    hidden = torch.stack([_hidden(model, ids, offset) for ids, _ in sequences()])
    return -cross_entropy(hidden.flatten(0, 1), model.lm_head.weight, targets.flatten()).view_as(targets)


def _hidden(model: Any, ids: list[int], offset: int) -> Tensor:
    """Hidden states [context, width] of one sequence alone, moved to where it lies in its row."""
    alone: Tensor = model.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    return torch.nn.functional.pad(alone, (0, 0, offset, CONTEXT - offset - len(ids)))


@pytest.fixture
def models(dpo_trainer: Any) -> tuple[Any, Any]:
    """Plain copies of the trainer's models: its own have a patched forward."""
    policy, reference = llama("LlamaForCausalLM", seed=3), llama("LlamaForCausalLM", seed=3)
    policy.load_state_dict(dpo_trainer.model.state_dict())
    reference.load_state_dict(dpo_trainer.ref_model.state_dict())
    return policy, reference


def compare(loss: Tensor, policy: Any, theirs: Tensor, their_gradients: Gradients) -> None:
    loss.backward()
    torch.testing.assert_close(loss.detach(), theirs, rtol=1e-5, atol=0)
    for name, parameter in policy.named_parameters():
        assert (parameter.grad - their_gradients[name]).norm() <= 1e-5 * their_gradients[name].norm(), name


@pytest.mark.parametrize(
    ("loss_type", "objective"),
    [
        ("sigmoid", Dpo(kind="dpo", beta=0.3)),
        ("sigmoid_norm", Dpo(kind="dpo", beta=2.0, length_normalised=True)),
        ("ipo", Dpo(kind="dpo", loss="ipo", beta=0.4)),
    ],
)
def test_dpo_losses_and_gradients_equal_trls(
    dpo_trainer: Any, models: tuple[Any, Any], loss_type: str, objective: Dpo
) -> None:
    dpo_trainer.loss_types, dpo_trainer.beta = [loss_type], objective.beta
    theirs, their_gradients = their_dpo(dpo_trainer, PAIRS)
    loss = LOSSES[objective.loss](*log_ratios(*models), objective).mean()
    compare(loss, models[0], theirs, their_gradients)


def test_the_smoothed_loss_equals_trls_of_each_pair(dpo_trainer: Any, models: tuple[Any, Any]) -> None:
    objective = Dpo(kind="dpo", beta=0.3, label_smoothing=0.2)
    dpo_trainer.loss_types, dpo_trainer.beta, dpo_trainer.label_smoothing = ["aot"], objective.beta, 0.2
    each = [their_dpo(dpo_trainer, [pair]) for pair in PAIRS]
    theirs = torch.stack([loss for loss, _ in each])
    their_gradients = {name: sum(found[name] for _, found in each) for name in each[0][1]}
    losses = LOSSES[objective.loss](*log_ratios(*models), objective)
    torch.testing.assert_close(losses.detach(), theirs, rtol=1e-5, atol=0)
    compare(losses.sum(), models[0], theirs.sum(), their_gradients)


def test_the_accuracy_of_pairs_equals_trls(dpo_trainer: Any, models: tuple[Any, Any]) -> None:
    dpo_trainer.loss_types = ["sigmoid"]
    dpo_trainer._metrics["train"].clear()
    their_dpo(dpo_trainer, PAIRS)
    right = ranked_right(log_ratios(*models)[0])
    assert 0 < right.sum() < len(right)  # else the comparison says little
    assert dpo_trainer._metrics["train"]["rewards/accuracies"] == [right.float().mean().item()]


def test_the_reward_loss_and_gradients_equal_trls(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    model = llama("LlamaForSequenceClassification", seed=1)
    ours = copy.deepcopy(model)
    whole = [
        {f"{key}_ids": pair["prompt_ids"] + pair[f"{key}_ids"] for key in ("chosen", "rejected")} for pair in PAIRS
    ]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**settings(tmp_path), gradient_checkpointing=False),
        train_dataset=Dataset.from_list(whole),
        processing_class=tokenizer(),
    )
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator(whole))
    theirs.backward()
    scores = [ours(input_ids=torch.tensor([ids]), use_cache=False).logits[0, 0] for ids, _ in sequences()]
    their_gradients = {name: x.grad for name, x in trainer.model.named_parameters()}
    compare(bradley_terry(torch.stack(scores)).mean(), ours, theirs.detach(), their_gradients)
    right = ranked_right(torch.stack(scores)).float().mean().item()
    assert trainer._metrics["train"]["accuracy"] == [right]
