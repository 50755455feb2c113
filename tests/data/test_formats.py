import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.data.formats import FORMATS, ROLES, Sample, Turn, read
from samestep.data.source import Invalid
from samestep.recipe.schema import Data

WHERE = "/data/chats.jsonl:17"
DATA = Data()
HELLO = {"role": "user", "content": "hello"}
HI = {"role": "assistant", "content": "hi"}
HO = {"role": "assistant", "content": "ho"}
MORE = {"role": "user", "content": "more"}


def turns(*found):
    return tuple(Turn(turn["role"], turn["content"]) for turn in found)


def sample(fields, data=DATA):
    found = read(fields, data, WHERE)
    assert isinstance(found, Sample), found
    return found


def refusal(fields, data=DATA):
    found = read(fields, data, WHERE)
    assert isinstance(found, Invalid), found
    assert found.message.startswith(f"{WHERE}: ")
    assert "\n" not in found.message
    return found.message.removeprefix(f"{WHERE}: ")


@pytest.mark.parametrize(
    ("fields", "format", "prompt", "answers"),
    [
        ({"text": "a"}, "text", "", ("a",)),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", "a", ("b",)),
        ({"prompt": "", "completion": "b"}, "prompt_completion", "", ("b",)),
        ({"prompt": [HELLO], "completion": [HI]}, "prompt_completion", turns(HELLO), (turns(HI),)),
        ({"messages": [HELLO, HI]}, "messages", (), (turns(HELLO, HI),)),
        ({"messages": [HELLO, HI, MORE]}, "messages", (), (turns(HELLO, HI, MORE),)),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", "a", ("b", "c")),
        ({"prompt": [HELLO], "chosen": [HI], "rejected": [HO]}, "preference", turns(HELLO), (turns(HI), turns(HO))),
        ({"chosen": [HELLO, HI], "rejected": [HELLO, HO]}, "preference", turns(HELLO), (turns(HI), turns(HO))),
        (
            {"chosen": [HELLO, HI, MORE, HI], "rejected": [HELLO, HI, MORE, HO]},
            "preference",
            turns(HELLO, HI, MORE),
            (turns(HI), turns(HO)),
        ),
    ],
)
def test_a_row_is_recognised_by_its_keys(fields, format, prompt, answers):
    assert sample(fields) == Sample(format, prompt, answers, WHERE)
    assert sample({**fields, "id": 7, "group": {"a": 1}, "score": None}) == sample(fields)  # metadata
    assert sample({**fields, "text": fields.get("text"), "label": None}) == sample(fields)  # as Parquet fills columns


def test_the_text_field_is_the_recipes_but_the_row_of_a_text_file_is_always_text():
    named = Data(text_field="content")
    assert sample({"content": "a", "text": "b"}, named).answers == ("a",)
    assert sample({"text": "b"}, named).answers == ("b",)
    assert "no field 'content'" in refusal({"text": "b", "id": 1}, named)


def test_only_a_text_without_characters_is_empty():
    assert sample({"text": ""}).empty
    assert not sample({"text": " "}).empty
    assert not sample({"prompt": "", "completion": "b"}).empty
    assert not sample({"messages": [HELLO, HI]}).empty


def test_samples_of_the_same_content_are_equal_wherever_they_stand():
    assert read({"text": "a"}, DATA, "here:1") == read({"text": "a"}, DATA, "there:2") != read({"text": "b"}, DATA, "")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "no field 'text' and no other known one among (none)"),
        ({"body": "a", "id": 1}, "no field 'text' and no other known one among body, id; set data.text_field"),
        ({"conversations": []}, "rename conversations to messages and write its turns as role and content"),
        ({"prompt": "a"}, "no field 'text' and no other known one among prompt"),
        ({"text": "a", "messages": [HELLO, HI]}, "this is text and messages at once (keys text, messages)"),
        ({"prompt": "a", "completion": "b", "chosen": "c", "rejected": "d"}, "prompt_completion and preference"),
        ({"text": None}, "field 'text' must be text, it is of type NoneType"),
        ({"text": 3}, "field 'text' must be text, it is of type int"),
        ({"completion": "a"}, "no field 'prompt'; prompt and completion belong together, and completion are there"),
        ({"chosen": "a"}, "no field 'prompt'; prompt and chosen and rejected belong together"),
        ({"prompt": "a", "chosen": "a"}, "no field 'rejected'"),
        ({"chosen": "a", "rejected": "b"}, "no field 'prompt'"),
        ({"prompt": "a", "completion": 3}, "field 'completion' must be text or a list of turns, it is of type int"),
        ({"prompt": "a", "completion": [HI]}, "prompt of type str, completion of type list"),
        ({"prompt": [HELLO], "completion": "a"}, "must be all text or all lists of turns"),
        ({"prompt": "a", "completion": " \n"}, "field 'completion' is empty"),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "field 'chosen' is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "\t"}, "field 'rejected' is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ({"prompt": [HELLO], "chosen": [HI], "rejected": [HI]}, "chosen and rejected are the same"),
        ({"chosen": [HELLO, HI], "rejected": [HELLO, HI]}, "chosen and rejected are the same"),
        ({"prompt": [HELLO, HI], "completion": [HI]}, "the prompt ends with an assistant turn"),
        ({"prompt": [HELLO], "completion": [MORE, HI]}, "completion must go on after the prompt with an assistant"),
        ({"chosen": [HELLO, HI], "rejected": [MORE, HO]}, "share no first turn"),
        ({"chosen": [HELLO], "rejected": [HELLO, HO]}, "chosen must go on after the prompt with an assistant turn"),
        ({"prompt": [], "completion": [HI]}, "field 'prompt' is an empty list"),
        ({"messages": "hello"}, "field 'messages' must be a list of turns, it is of type str"),
        ({"messages": []}, "field 'messages' is an empty list"),
        ({"messages": ["hello"]}, "messages[0] must be an object with role and content, it is of type str"),
        ({"messages": [{"from": "human", "value": "a"}]}, "messages[0] has no 'role'; a turn is role and content, and"),
        ({"messages": [HELLO, {"role": "assistant"}]}, "messages[1] has no 'content'"),
        ({"messages": [HELLO, {**HI, "content": None}]}, "messages[1].content must be text, it is of type NoneType"),
        ({"messages": [HELLO, {**HI, "content": [{"type": "text"}]}]}, "messages[1].content must be text, it is of ty"),
        ({"messages": [{**HELLO, "role": 1}]}, "messages[0].role must be text, it is of type int"),
        ({"messages": [{**HELLO, "role": "human"}]}, "messages[0].role 'human' is not known; rename it to user"),
        ({"messages": [{**HI, "role": "gpt"}]}, "messages[0].role 'gpt' is not known; rename it to assistant"),
        ({"messages": [{**HI, "role": "owl"}]}, "'owl' is not known; use one of system, user, assistant, tool"),
        ({"messages": [HELLO, {**HI, "content": "\n "}]}, "messages[1].content of the assistant is empty"),
        ({"messages": [HELLO, {**HI, "tool_calls": [1]}]}, "messages[1].tool_calls is not read and would be lost"),
        ({"messages": [HELLO, HI], "tools": [{"name": "f"}]}, "field 'tools' is not read and would be lost"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_the_reason(fields, says):
    assert says in refusal(fields)


def test_a_refusal_stays_short_whatever_the_row_is():
    assert len(refusal({f"{i}" * 100: i for i in range(1000)})) < 800


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["text", "messages", "prompt", "completion", "chosen", "rejected", "other"])


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_row_is_a_sample_or_a_refusal(fields):
    found = read(fields, DATA, WHERE)
    if isinstance(found, Invalid):
        assert found.message.startswith(f"{WHERE}: ")
    else:
        assert found.format in FORMATS
        assert len(found.answers) == 1 + (found.format == "preference")


@given(st.lists(st.builds(Turn, st.sampled_from(ROLES), st.text().filter(str.strip)), min_size=1))
def test_turns_come_out_as_they_were_written(chat):
    written = [{"role": turn.role, "content": turn.content} for turn in chat]
    assert sample({"messages": written}).answers == (tuple(chat),)


@given(st.lists(st.sampled_from([HELLO, HI, HO, MORE]), max_size=4))
def test_a_preference_of_whole_chats_is_split_where_they_differ(shared):
    chosen, rejected = ([HELLO, *shared, MORE, answer] for answer in (HI, HO))
    explicit = {"prompt": [HELLO, *shared, MORE], "chosen": [HI], "rejected": [HO]}
    assert sample({"chosen": chosen, "rejected": rejected}) == sample(explicit)
