import pytest

from samestep.data.secrets import KINDS, is_iban, kinds

PIECES = {  # built from parts, so that no scanner takes this file for a leak
    "e-mail address": ["jane.doe+x@mail.org", "a_b@sub.host.co.uk"],
    "private key": ["-----BEGIN " + "RSA PRIVATE KEY-----", "-----BEGIN " + "PGP PRIVATE KEY BLOCK-----"],
    "AWS key": ["AKIA" + "ABCDEFGHIJ234567"],
    "GitHub token": ["ghp_" + "a1" * 18, "github_pat_" + "a_1" * 25],
    "Slack token": ["xoxb-" + "123456789012-abcdefghij"],
    "Hugging Face token": ["hf_" + "aB3" * 11],
    "OpenAI-style key": ["sk-" + "aB3" * 8, "sk-proj-" + "aB3" * 8],
    "IBAN": ["GB82WEST12345698765432", "DE89 3704 0044 0532 0130 00"],
}


@pytest.mark.parametrize(("kind", "piece"), [(kind, piece) for kind, some in PIECES.items() for piece in some])
def test_each_kind_is_found_in_the_middle_of_a_text(kind: str, piece: str) -> None:
    assert list(kinds(f"before {piece}, after")) == [kind]
    assert list(kinds(f"twice:\n{piece}\n{piece}\n")) == [kind]


def test_every_kind_has_an_example_here() -> None:
    assert set(PIECES) == set(KINDS)


@pytest.mark.parametrize(
    "text",
    [
        "an @decorator, user@host and name@example.com, as in documentation",
        "-----BEGIN CERTIFICATE-----",
        "AKIAshort ghp_short xox hf_transformer sk-learn task-management-of-the-whole-team",
        "GB82WEST12345698765433",  # the checksum is wrong
        "",
    ],
)
def test_what_only_looks_like_one_is_left_alone(text: str) -> None:
    assert list(kinds(text)) == []


def test_several_kinds_are_named_once_each_in_a_fixed_order() -> None:
    text = " ".join(piece for some in reversed(PIECES.values()) for piece in some)
    assert list(kinds(text)) == list(KINDS)


def test_an_iban_is_told_by_its_checksum() -> None:
    assert is_iban("FR1420041010050500013M02606")
    assert not is_iban("FR1420041010050500013M02607")
