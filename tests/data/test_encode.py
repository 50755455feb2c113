import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from samestep.data.encode import Encoder, Sequence, marked
from samestep.data.formats import Sample, Turn
from samestep.data.source import Invalid
from samestep.data.template import load
from samestep.errors import DataError

END = "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = ["the cat sat on the mat. what is that? that is a hat, assistant. user: ein grüner Hut\n\n"] * 50
QUESTION, ANSWER, MORE, LAST = (
    Turn("user", "what is that?"),
    Turn("assistant", "a grüner hat 🙂"),
    Turn("user", "no: ✓"),
    Turn("assistant", "the mat"),
)


def trained_bpe():
    """A byte-level BPE with a post-processor that trims offsets and a padding, as many files have them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|im_start|>", END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing("<|im_start|> $A", None, [("<|im_start|>", 0)]),
        ]
    )
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(8)
    return tokenizer


TOKENIZER = trained_bpe().to_str()
PLAIN = Tokenizer.from_str(TOKENIZER)
PLAIN.no_padding()
PLAIN.no_truncation()


def encoder(train_on="answers", template=CHATML):
    return Encoder(TOKENIZER, template, END, {"eos_token": END}, train_on)


def one(sample, **settings):
    (found,) = encoder(**settings).encode([sample])
    return found


def text(string):
    return Sample("text", "", (string,), "here:1")


def pair(prompt, *answers):
    return Sample("prompt_completion" if len(answers) == 1 else "preference", prompt, answers, "here:1")


def chat(*turns):
    return Sample("messages", (), (turns,), "here:1")


def ids(string):
    return PLAIN.encode(string, add_special_tokens=False).ids


def learnt(sequence):
    """The text of each run of trained tokens."""
    runs, before = [], False
    for token, trained in zip(sequence.ids, sequence.trained, strict=True):
        if trained and not before:
            runs.append([])
        if trained:
            runs[-1].append(token)
        before = trained
    return [PLAIN.decode(run, skip_special_tokens=False) for run in runs]


def test_a_text_is_its_tokens_and_eos_all_trained():
    for train_on in ("answers", "all"):
        assert one(text("the cat"), train_on=train_on) == (Sequence([*ids("the cat"), *ids(END)], None),)
    assert one(text("the cat" + END))[0].ids == [*ids("the cat"), *ids(END) * 2]  # as every text of a corpus


def test_nothing_is_cut_padded_or_added_whatever_the_file_says():
    found = one(text("the cat " * 100))[0].ids
    assert found == [*ids("the cat " * 100), *ids(END)]
    assert len(found) > 100
    assert len(one(text("a"))[0].ids) == 2


def test_a_text_that_spells_a_special_token_gets_it():
    assert one(text(f"a{END}b"))[0].ids == [*ids("a"), *ids(END), *ids("b"), *ids(END)]


def test_of_a_pair_the_completion_and_eos_are_trained():
    (found,) = one(pair("what is that?", " a hat"))
    assert found.ids == [*ids("what is that? a hat"), *ids(END)]
    assert learnt(found) == [f" a hat{END}"]


def test_a_space_at_the_border_belongs_to_the_token_after_it():
    (found,) = one(pair("what is that? ", "hat"))  # " hat" is one token that begins in the prompt
    assert len(ids(" hat")) == 1
    assert learnt(found) == [" hat" + END]  # but without it nothing of the completion would be trained
    (found,) = one(pair("what is that? ", "hat, a hat"))
    assert learnt(found) == [", a hat" + END]


def test_eos_is_not_written_twice_behind_a_completion():
    (found,) = one(pair("what?", f" a hat{END}"))
    assert found.ids == [*ids("what? a hat"), *ids(END)]
    assert learnt(found) == [f" a hat{END}"]


def test_a_preference_is_the_prompt_with_each_answer():
    chosen, rejected = one(pair("what is that?", " a hat", " a mat"))
    assert (learnt(chosen), learnt(rejected)) == ([f" a hat{END}"], [f" a mat{END}"])
    assert chosen.ids[: len(ids("what is that?"))] == ids("what is that?") == rejected.ids[: len(ids("what is that?"))]


def test_of_a_chat_each_answer_is_trained_with_its_end_and_no_eos_is_added():
    (found,) = one(chat(Turn("system", "the cat"), QUESTION, ANSWER, MORE, LAST))
    assert learnt(found) == [ANSWER.content + END, LAST.content + END]
    assert PLAIN.decode(found.ids, skip_special_tokens=False).endswith(f"the mat{END}\n")


@pytest.mark.parametrize("answers", [((LAST,),), ((LAST,), (Turn("assistant", "a hat"),))])
def test_of_a_prompt_of_turns_only_what_follows_is_trained(answers):
    found = one(pair((QUESTION, ANSWER, MORE), *answers))
    assert [learnt(sequence) for sequence in found] == [[answer[0].content + END] for answer in answers]
    assert found[0].ids == one(chat(QUESTION, ANSWER, MORE, LAST))[0].ids


def test_under_all_everything_is_trained():
    for sample in (pair("what?", " a hat"), chat(QUESTION, ANSWER), chat(QUESTION)):
        assert one(sample, train_on="all")[0].trained is None
    assert one(chat(QUESTION, ANSWER), train_on="all")[0].ids == one(chat(QUESTION, ANSWER))[0].ids
    assert one(pair("what?", " a hat"), train_on="all")[0].ids == one(pair("what?", " a hat"))[0].ids


def test_what_cannot_be_encoded_is_named_and_the_rest_goes_on():
    found = encoder().encode([chat(QUESTION), text("a"), Sample("messages", (), ((QUESTION,),), "/data/c.jsonl:9")])
    assert isinstance(found[0], Invalid)
    assert found[1] == (Sequence([*ids("a"), *ids(END)], None),)
    assert found[2].message.startswith("/data/c.jsonl:9: no assistant turn")


def test_an_answer_that_the_template_drops_is_refused():
    only_users = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    assert "no token of their own" in one(chat(QUESTION, ANSWER), template=only_users).message


def test_a_chat_without_a_template_is_an_error_with_the_way_out():
    assert one(text("a"), template=None)
    without = Encoder(TOKENIZER, None, END, {}, "answers", origin="models/base")
    with pytest.raises(DataError, match=r"here:1 is a chat, but models/base has no chat template .*jinja there or"):
        without.encode([chat(QUESTION, ANSWER)])


def test_a_tokenizer_that_is_none_or_lacks_the_eos_is_named():
    with pytest.raises(DataError, match=r"tokenizer\.json of models/base is no tokenizer"):
        Encoder("{}", None, END, {}, "answers", origin="models/base")
    with pytest.raises(DataError, match=r"no token </s> to end a text with; its special tokens are: <\|im_start\|>, "):
        Encoder(TOKENIZER, None, "</s>", {}, "answers")


TEXTS = st.text(st.sampled_from("the cat\n 漢🙂é?"), min_size=1).filter(str.strip)


@given(TEXTS, TEXTS)
def test_a_pair_has_the_tokens_of_the_whole_and_all_that_begin_in_the_completion_are_trained(prompt, completion):
    (found,) = one(pair(prompt, completion))
    assert found.ids == [*ids(prompt + completion), *ids(END)]
    assert found.trained == sorted(found.trained)  # none, then all
    (said,) = learnt(found)
    assert f"{completion}{END}".endswith(said) or said.endswith(f"{completion}{END}") or "\ufffd" in said


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_every_answer_of_any_chat_is_trained_whole(exchanges):
    turns = [Turn(role, said) for both in exchanges for role, said in zip(("user", "assistant"), both, strict=True)]
    (found,) = one(chat(*turns))
    for said, (_, answer) in zip(learnt(found), exchanges, strict=True):
        assert (answer + END).endswith(said)  # but for white space that is one token with the line end before it
        assert not (answer + END).removesuffix(said).strip()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
def test_marked_tokens_are_those_that_begin_inside(lengths, data):
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    offsets = list(zip([0, *ends], ends, strict=False))
    borders = sorted(data.draw(st.lists(st.integers(0, ends[-1]), min_size=2, max_size=6)))
    spans = list(zip(borders[::2], borders[1::2], strict=False))
    inside = [any(begin <= start < until for begin, until in spans) for start, _ in offsets]
    if any(inside):
        assert marked(offsets, spans) == inside
    else:
        assert marked(offsets, spans) == [any(s < until and begin < e for begin, until in spans) for s, e in offsets]


WORKER = """
import sys
from samestep.data.encode import Encoder
from samestep.data.formats import Sample, Turn
encoder = Encoder(sys.stdin.read(), "{{ messages[0].content }}", "<|im_end|>", {}, "all")
encoder.encode([Sample("text", "", ("the cat",), ""), Sample("messages", (), ((Turn("user", "the cat"),),), "")])
print(*sys.modules)
"""


def test_a_process_that_encodes_imports_nothing_heavy():
    ran = subprocess.run([sys.executable, "-c", WORKER], input=TOKENIZER, text=True, capture_output=True, check=True)
    assert not {"torch", "transformers", "pyarrow", "datasets"} & set(ran.stdout.split())


def hugging_face(tokenizer, template):
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, chat_template=template)


def messages(turns):
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def metaspace():
    """In the manner of sentencepiece: a normaliser that writes spaces as another character, byte fallback."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(END, rstrip=True), AddedToken("<|im_start|>")])
    return tokenizer


@pytest.mark.parametrize("make", [trained_bpe, metaspace])
def test_the_ids_are_those_of_transformers(make):
    tokenizer = make()
    theirs = hugging_face(tokenizer, CHATML)
    ours = Encoder(tokenizer.to_str(), CHATML, END, {"eos_token": END}, "answers")
    for turns in ((QUESTION, ANSWER), (QUESTION, ANSWER, MORE, LAST), (Turn("system", "e\u0301 \n"), MORE, ANSWER)):
        (found,) = ours.encode([chat(*turns)])
        assert found[0].ids == theirs.apply_chat_template(messages(turns), tokenize=True, return_dict=False)
        assert any(found[0].trained) and not all(found[0].trained)


@pytest.mark.slow
def test_real_chats_are_encoded_as_transformers_does(real):
    transformers = pytest.importorskip("transformers")
    folder = real.parent / "models" / "smollm2"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Encoder((folder / "tokenizer.json").read_text("utf-8"), *_with_eos(load(folder)), "answers")
    lines = (real.parent / "data" / "chats.jsonl").read_text("utf-8").split("\n")[:-1:200]
    for line in lines:
        written = [{key: turn[key] for key in ("role", "content")} for turn in json.loads(line)["messages"]]
        ((found,),) = ours.encode([chat(*(Turn(**turn) for turn in written))])
        assert found.ids == theirs.apply_chat_template(written, tokenize=True, return_dict=False)
        said = [token for token, trained in zip(found.ids, found.trained, strict=True) if trained]
        assert theirs.decode(said) == written[-1]["content"] + END


def _with_eos(loaded):
    template, special = loaded
    return template, special["eos_token"], special
