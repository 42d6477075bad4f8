import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.inference_sim import answers, call, tokens
from weir.inference_sim.answers import Answer, Usage
from weir.inference_sim.call import BadCall, Kind, MalformedCall


@given(
    st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.sampled_from([1, 2, 16])
)
def test_two_texts_share_hashes_exactly_as_far_as_their_full_blocks_agree(head, one, two, size):
    first, second = (head + one).encode(), (head + two).encode()
    ours, theirs = tokens.chain(first, size), tokens.chain(second, size)
    width = size * tokens.TOKEN_BYTES
    for index in range(min(len(ours), len(theirs))):
        end = (index + 1) * width
        assert (ours[index] == theirs[index]) == (first[:end] == second[:end])
    assert len(ours) == len(first) // width


def test_adapters_share_no_blocks():
    text = b"x" * 640
    chains = [tokens.chain(text, 16, adapter) for adapter in (None, "a", "b")]
    assert len({value for chain in chains for value in chain}) == 30


@pytest.mark.parametrize(("text", "count"), [(b"", 0), (b"a", 1), (b"abcd", 1), (b"abcde", 2)])
def test_four_bytes_are_a_token(text, count):
    assert tokens.count(text) == count


@given(st.binary(max_size=30), st.integers(0, 9), st.integers(1, 300), st.integers(0, 300))
def test_an_answer_is_four_plain_bytes_a_token_and_continues_shorter_ones(
    prompt, seed, length, more
):
    answer = tokens.answer(prompt, "m", seed, length)
    assert len(answer.encode()) == 4 * length
    assert json.loads(f'"{answer}"') == answer
    assert tokens.answer(prompt, "m", seed, length + more).startswith(answer)


def test_an_answer_differs_by_seed_model_and_prompt():
    assert len({tokens.answer(p, m, s, 9) for p in (b"p", b"q") for m in "mn" for s in (0, 1)}) == 8


@pytest.mark.parametrize(
    ("body", "prompt", "max_tokens"),
    [
        ({"prompt": "hi"}, b"hi", 16),
        ({"prompt": ["hi"], "max_tokens": 3}, b"hi", 3),
        ({"prompt": "hi", "max_tokens": None, "temperature": 0.1, "unknown": {}}, b"hi", 16),
        ({"prompt": [1, 256]}, b"\0\0\0\1\0\0\1\0", 16),
        ({"prompt": [[1]]}, b"\0\0\0\1", 16),
        ({"prompt": "hi", "max_tokens": 4.0}, b"hi", 4),
    ],
)
def test_a_completion_is_read(body, prompt, max_tokens):
    read = call.read_completion(json.dumps(body).encode())
    assert (read.prompt, read.max_tokens, read.stream, read.usage) == (
        prompt,
        max_tokens,
        False,
        False,
    )


def test_a_chat_is_read_and_its_next_turn_begins_with_it():
    first = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hé"}]
    answered = {"role": "assistant", "content": " bon bon"}
    asked = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    }
    one = call.read_chat(json.dumps({"messages": first, "max_completion_tokens": 5}).encode())
    two = call.read_chat(json.dumps({"messages": [*first, answered, asked]}).encode())
    assert one.max_tokens == 5
    assert two.prompt.startswith(one.prompt + b" bon bon")
    assert b"ab<|im_end|>" in two.prompt


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "truncated"),
        (b"\xff", "malformed"),
        (b'{"prompt":"\xff"}', "utf-8"),
        (b"[]", "Expected `object`"),
        (b'{"prompt":"a","max_tokens":"many"}', r"\$.max_tokens"),
        (b'{"prompt":{}}', r"\$.prompt"),
    ],
)
def test_a_body_of_the_wrong_shape_is_malformed(body, words):
    with pytest.raises(MalformedCall, match=words):
        call.read_completion(body)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "n": 2}, "n"),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_cannot_be_done_is_refused_by_the_name_of_its_field(body, param):
    with pytest.raises(BadCall) as refused:
        call.read_completion(json.dumps(body).encode())
    assert refused.value.param == param


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body):
    for read in (call.read_completion, call.read_chat):
        try:
            read(body)
        except BadCall:
            continue


@pytest.mark.parametrize(
    ("total", "interval", "cuts"),
    [(1, 8, [1]), (5, 1, [1, 2, 3, 4, 5]), (20, 8, [1, 9, 17, 20]), (9, 8, [1, 9])],
)
def test_the_first_token_is_sent_at_once_and_then_every_so_many(total, interval, cuts):
    assert list(answers.cuts(total, interval)) == cuts


def events(stream):
    *lines, end = stream.decode().split("\n\n")
    assert end == ""
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_completion_streams_its_text_then_usage():
    text = tokens.answer(b"p", "m", 0, 10)
    answer = Answer(Kind.COMPLETION, 'cmpl-"odd"', 7, "m")
    *chunks, usage = events(answers.transcript(answer, text, 4, Usage(3, 10, 2)))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [
        None,
        None,
        None,
        "length",
    ]
    assert {(c["id"], c["object"], c["created"], c["model"]) for c in [*chunks, usage]} == {
        ('cmpl-"odd"', "text_completion", 7, "m")
    }
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 3,
        "total_tokens": 13,
        "completion_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_a_chat_streams_its_role_first():
    text = tokens.answer(b"p", "m", 0, 3)
    opening, *chunks = events(answers.transcript(Answer(Kind.CHAT, "chatcmpl-1", 7, "m"), text, 1))
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == text
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_whole_answer_has_the_form_of_its_api():
    usage = Usage(3, 1, 0)
    chat = json.loads(Answer(Kind.CHAT, "chatcmpl-1", 7, "m").whole(" bon", usage))
    completion = json.loads(Answer(Kind.COMPLETION, "cmpl-1", 7, "m").whole(" bon", usage))
    assert chat["object"] == "chat.completion"
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": " bon"}
    assert completion["object"] == "text_completion"
    assert completion["choices"][0]["text"] == " bon"
    assert chat["usage"] == completion["usage"] == usage.fields()


def test_an_error_is_worded_as_vllm_words_it():
    body = json.loads(answers.error(404, "NotFoundError", "no", "model"))
    assert body == {
        "error": {"message": "no", "type": "NotFoundError", "param": "model", "code": 404}
    }
