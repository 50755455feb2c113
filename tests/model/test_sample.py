import torch
from torch import Tensor

from samestep.model.sample import sample

EOS, VOCABULARY = 0, 8


def counting(tokens: Tensor) -> Tensor:
    """A model that is sure that the next token is one more, and after 7 eos."""
    return 50.0 * torch.nn.functional.one_hot((tokens + 1) % VOCABULARY, VOCABULARY)


def go_on(tokens: list[int], count: int, temperature: float = 0.0, seed: int = 0, logits=counting) -> list[int]:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    return sample(lambda: logits, tokens, count, temperature, generator, context=4, eos=EOS)


def uniform(tokens: Tensor) -> Tensor:
    return torch.zeros(*tokens.shape, VOCABULARY)


def test_it_gives_the_new_tokens_only() -> None:
    assert go_on([1, 2], 3) == [3, 4, 5]
    assert go_on([1, 2], 3, temperature=1.0) == [3, 4, 5]
    assert go_on([1], 0) == []


def test_it_stops_at_the_end_of_the_text() -> None:
    assert go_on([5], 10) == [6, 7]


def test_an_empty_prompt_begins_a_document() -> None:
    assert go_on([], 2) == [1, 2]


def test_the_model_is_shown_each_token_once_and_half_of_them_again_when_its_context_is_full() -> None:
    shown: list[list[list[int]]] = []

    def decoder():  # type: ignore[no-untyped-def]
        shown.append([])

        def logits(tokens: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            shown[-1].append(tokens[0].tolist())
            return counting(tokens)

        return logits

    sample(decoder, [1, 2, 3], 4, 0.0, torch.Generator(), context=4, eos=EOS)
    assert shown == [[[1, 2, 3], [4]], [[4, 5], [6]]]


def test_the_end_of_a_long_prompt_is_shown() -> None:
    assert go_on([7, 7, 7, 7, 1, 2], 1) == [3]


def test_chance_comes_from_the_generator() -> None:
    texts = [go_on([1], 20, 1.0, seed, uniform) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_temperature_sharpens_and_flattens() -> None:
    def leaning(tokens: Tensor) -> Tensor:
        return torch.tensor([-torch.inf, 2, 1, 1, 1, 1, 1, 1]).expand(*tokens.shape, VOCABULARY)

    ones = {t: go_on([1], 300, t, 0, leaning).count(1) for t in (0.0, 0.1, 1.0, 100.0)}
    assert ones[0.0] == 300
    assert ones[0.1] > 290 > 150 > ones[1.0] > 60 > ones[100.0] > 20
