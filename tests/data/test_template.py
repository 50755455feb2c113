import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.data.formats import Refused, Turn
from samestep.data.template import Template, load
from samestep.errors import DataError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

# Short templates in the manner of the families that are met most.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if strftime_now is defined %}{%- set date = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' + system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token }}
{%- for m in rest %}
    {%- if (m["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate user/assistant") }}
    {%- endif %}
    {%- if m["role"] == "user" %}
        {%- if loop.first and system is defined %}
            {{- "[INST] " + system + "\n\n" + m["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + m["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + m["content"] + eos_token}}
    {%- endif %}
{%- endfor %}
"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
    "message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
# Marks the last answer, and no longer does so once another turn follows.
REWRITING = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.role == 'assistant' %}{% if loop.last %}{{ 'last ' }}"
    "{% endif %}BEGIN{{ m.content + '</a>' }}END{% else %}{{ m.content }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TAGGED = REWRITING.replace("BEGIN", "{%- generation -%}").replace("END", "{%- endgeneration -%}")
REWRITING = REWRITING.replace("BEGIN", "").replace("END", "")
FAMILIES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "zephyr": ZEPHYR, "tagged": TAGGED}

SYSTEM, USER, ANSWER = (
    Turn("system", "Be brief."),
    Turn("user", " What is <b> & 'ü'? \n"),
    Turn("assistant", "It is\nbold."),
)
CHATS = {
    "one question": (USER, ANSWER),
    "two questions": (USER, ANSWER, Turn("user", "And 漢字 🙂?"), Turn("assistant", "Signs.")),
    "with a system turn": (SYSTEM, USER, ANSWER),
    "ends with a question": (USER, ANSWER, USER),
}


def answers(text, chat, first=0):
    whole, spans = Template(text, SPECIAL).answers(chat, first)
    assert whole == Template(text, SPECIAL).render(chat)
    return [whole[start:end] for start, end in spans]


@pytest.fixture(scope="module")
def theirs():
    """transformers' rendering: its words where it refuses."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)

    def render(text, chat, prompt):
        messages = [{"role": turn.role, "content": turn.content} for turn in chat]
        return tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False, add_generation_prompt=prompt)

    return render


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("family", [*FAMILIES, "smollm2"])
def test_a_chat_is_rendered_as_transformers_does(family, chat, prompt, theirs, real):
    text = FAMILIES.get(family) or load(real.parent / "models" / "smollm2")[0]
    dateless = text.replace("strftime_now", "no_clock")  # transformers has a clock
    try:
        expected = theirs(dateless, chat, prompt)
    except Exception as error:
        with pytest.raises(Refused, match=re.escape(str(error))):
            Template(text, SPECIAL).render(chat, prompt=prompt)
    else:
        assert Template(text, SPECIAL).render(chat, prompt=prompt) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages|tojson }}",
        "{{ messages|tojson(indent=2, sort_keys=true) }}",
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ tools is none }} {{ documents is none }} {{ pad_token is defined }} {{ nothing }}{{ bos_token }}",
        "  {% if true %}\n  a\n  {% endif %}\n  b\n",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        "{% macro say(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}{{ say(messages[0]) }}",
    ],
)
def test_each_part_of_the_language_is_that_of_transformers(text, theirs):
    assert Template(text, SPECIAL).render(CHATS["one question"]) == theirs(text, CHATS["one question"], False)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("chatml", ["It is\nbold.<|im_end|>", "Signs.<|im_end|>"]),
        ("llama3", ["It is\nbold.<|eot_id|>", "Signs.<|eot_id|>"]),
        ("mistral", [" It is\nbold.</s>", " Signs.</s>"]),
        ("gemma", ["It is\nbold.<end_of_turn>", "Signs.<end_of_turn>"]),
        ("zephyr", ["It is\nbold.</s>", "Signs.</s>"]),
    ],
)
def test_an_answer_goes_from_the_prompt_to_what_ends_the_turn(family, expected):
    assert answers(FAMILIES[family], CHATS["two questions"]) == expected
    assert answers(FAMILIES[family], CHATS["two questions"], first=2) == expected[1:]


def test_the_answer_before_a_last_question_is_found():
    assert answers(CHATML, CHATS["ends with a question"]) == ["It is\nbold.<|im_end|>"]


def test_where_earlier_turns_are_rewritten_only_generation_blocks_tell_the_answers():
    assert answers(REWRITING, CHATS["one question"]) == ["last It is\nbold.</a>"]
    with pytest.raises(Refused, match=r"does not render the turns before an answer as the beginning .* generation"):
        answers(REWRITING, CHATS["two questions"])
    assert answers(TAGGED, CHATS["two questions"]) == ["It is\nbold.</a>", "Signs.</a>"]


def test_the_mark_of_generation_blocks_is_no_character_of_the_chat():
    chat = (USER, Turn("assistant", "a\ufdd0b"), USER, Turn("assistant", "\ufdd1"))
    assert answers(TAGGED, chat) == ["a\ufdd0b</a>", "\ufdd1</a>"]


def test_generation_blocks_that_are_not_one_for_each_answer_are_refused():
    text = TAGGED.replace("{% if m.role == 'assistant' %}", "{% if m.role == 'assistant' and not loop.last %}")
    with pytest.raises(Refused, match="cannot be found"):
        answers(text, (USER, ANSWER, USER, ANSWER))


def test_a_chat_without_an_answer_is_refused():
    with pytest.raises(Refused, match=r"no assistant turn, .* objective\.train_on: all"):
        answers(CHATML, (SYSTEM, USER))
    with pytest.raises(Refused, match="no assistant turn"):
        answers(CHATML, CHATS["one question"], first=2)


def test_what_the_template_refuses_is_refused_in_its_words():
    with pytest.raises(Refused, match="the chat template refuses it: System role not supported"):
        Template(GEMMA, SPECIAL).render(CHATS["with a system turn"])
    with pytest.raises(Refused, match="'bos_token' is undefined"):
        Template("{{ bos_token + '' }}", {}).render(CHATS["one question"])
    with pytest.raises(Refused, match="refuses it: "):
        Template("{{ 1 + messages[0].content }}", {}).render(CHATS["one question"])


def test_a_template_cannot_change_the_chat_or_leave_the_sandbox():
    for text in ("{{ messages.append(1) }}", "{{ messages.__class__.__mro__[1].__subclasses__() }}"):
        with pytest.raises(Refused, match="refuses it: "):
            Template(text, {}).render(CHATS["one question"])


def test_a_template_that_needs_the_date_is_no_template_for_us():
    with pytest.raises(DataError, match=r"asks for today's date .* write a fixed date into chat_template\.jinja"):
        Template("{{ strftime_now('%Y') }}", {}).render(CHATS["one question"])


@pytest.mark.parametrize("text", ["{% for %}", "{{ messages|random }}", "{{ messages", "{% generation %}"])
def test_what_does_not_compile_is_said_with_its_line(text):
    with pytest.raises(DataError, match=r"the chat template does not compile \(line 2: "):
        Template("\n" + text, {})


def test_nothing_random_is_left():
    with pytest.raises(Refused, match="'lipsum' is undefined"):
        Template("{{ lipsum() }}", {}).render(CHATS["one question"])


@given(st.lists(st.builds(Turn, st.sampled_from(["user", "assistant"]), st.text(min_size=1)), min_size=2))
def test_spans_are_in_order_and_each_holds_its_answer(turns):
    chat = (USER, *turns, ANSWER)
    whole, spans = Template(CHATML, {}).answers(chat)
    said = [turn.content for turn in chat if turn.role == "assistant"]
    assert [whole[start:end] for start, end in spans] == [content + "<|im_end|>" for content in said]
    assert spans == sorted(spans)


def test_a_chat_costs_well_under_200_microseconds():
    template, chat = Template(CHATML, {}), CHATS["two questions"]
    times = []
    for _ in range(200):
        start = time.perf_counter()
        template.answers(chat)
        times.append(time.perf_counter() - start)
    assert min(times) < 200e-6


def test_a_folders_template_is_the_file_before_the_config(tmp_path):
    config = {"chat_template": "config", "eos_token": {"content": "</s>"}, "bos_token": "<s>", "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load(tmp_path) == ("config", {"bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "chat_template.jinja").write_text("file ü", "utf-8")
    assert load(tmp_path)[0] == "file ü"


def test_of_named_templates_the_default_is_taken(tmp_path):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load(tmp_path) == ("plain", {})
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named[:1]}))
    assert load(tmp_path) == (None, {})


def test_the_tokens_of_old_folders_stand_in_special_tokens_map(tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "old", "unk_token": "<unk>"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "new"}))
    assert load(tmp_path) == (None, {"eos_token": "new", "unk_token": "<unk>"})


def test_a_folder_without_any_of_it_has_no_template(tmp_path):
    assert load(tmp_path) == (None, {})


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token": {"a": 1}}', '{"chat_template": [3]}'])
def test_a_config_that_is_none_is_named(tmp_path, text):
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(DataError, match=r"tokenizer_config\.json"):
        load(tmp_path)


def test_a_template_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"chat_template\.jinja as UTF-8"):
        load(tmp_path)
