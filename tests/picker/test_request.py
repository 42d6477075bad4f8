import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picker import body, prefix
from picker.request import Request, from_body, from_headers

DIGESTS = "v1;40;20;0a0b0c0d"


def test_digests_and_model_come_from_the_filters_headers():
    headers = {"x-weir-digest": DIGESTS, "x-gateway-model-name": "base", "content-length": "40"}
    request = from_headers(headers, trusted=True)
    assert (request.model, request.prompt_bytes) == ("base", 20)
    assert request.prefix == prefix.of_digests("base", ["0a0b0c0d"], 20)
    assert request.prompt_tokens == 5


def test_a_clients_claims_count_for_nothing_where_the_filter_did_not_run():
    headers = {"x-weir-digest": DIGESTS, "x-gateway-model-name": "base", "content-length": "40"}
    assert from_headers(headers, trusted=False) == Request(prompt_bytes=40)


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "v2;40;20;0a0b0c0d",
        "v1;40;20",
        "v1;40;x;0a0b0c0d",
        "v1;40;20;nonsense",
        "v1;40;20;0a0b0c0d.0a0b0c0d",
        "v1;40;5000;0a0b0c0d",
    ],
)
def test_digests_that_make_no_sense_leave_a_request_without_a_prefix(digest):
    request = from_headers({"x-weir-digest": digest, "content-length": "40"}, trusted=True)
    assert request.prefix == prefix.NO_PREFIX
    assert request.prompt_bytes is not None


def test_a_request_that_nobody_measured_has_no_length():
    assert from_headers({}, trusted=True).prompt_tokens is None


def test_the_objective_is_read_under_its_new_name_first():
    headers = {"x-gateway-inference-objective": "old", "x-llm-d-inference-objective": "new"}
    assert from_headers(headers, trusted=False).objective == "new"
    del headers["x-llm-d-inference-objective"]
    assert from_headers(headers, trusted=False).objective == "old"


@pytest.mark.parametrize(
    ("text", "model", "prompt"),
    [
        ('{"model":"a","prompt":"xyz"}', "a", '"xyz"'),
        ('{"messages":[{"role":"user","content":"hi"}],"model":"a"}', "a", None),
        ('{ "prompt" : ["a", "b"] , "model" : "a" }', "a", '["a", "b"]'),
        ('{"prompt":"a","input":"b","model":"m"}', "m", '"a"'),
        ('{"messages":[{"model":"no","prompt":"no"}],"\\u006dodel":"yes"}', "yes", None),
        ('{"model":"caf\\u00e9","prompt":null}', "café", ""),
        ('{"prompt":"x"}', "", '"x"'),
        ('{"model":3,"prompt":"x"}', "", '"x"'),
        ("{}", "", ""),
        ("[]", "", ""),
        ("not json", "", ""),
        ("", "", ""),
    ],
)
def test_model_and_prompt_of_a_body(text, model, prompt):
    found_model, found = body.read(text.encode())
    if prompt is None:
        prompt = json.dumps(json.loads(text)["messages"], separators=(",", ":"))
    assert found_model == model
    assert (found or b"").decode() == prompt


@pytest.mark.parametrize("cut", range(20, 60, 7))
def test_a_body_that_was_cut_off_is_read_as_far_as_it_goes(cut):
    text = '{"model":"a","messages":[{"role":"user","content":"' + "word " * 50 + '"}]}'
    model, prompt = body.read(text[:cut].encode())
    assert model == "a"
    start = text.index("[")
    assert (prompt or b"").decode() == text[start:cut].rstrip()


def test_a_cut_off_body_counts_as_long_as_the_whole_was():
    text = json.dumps({"prompt": "x" * 10_000}).encode()
    whole = from_body({"content-length": str(len(text))}, text)
    part = from_body({"content-length": str(len(text))}, text[:2000])
    assert part.prompt_bytes == pytest.approx(whole.prompt_bytes, abs=4)
    assert part.prefix.keys[0] == whole.prefix.keys[0]


keys = st.sampled_from(["model", "prompt", "messages", "input", "stream", "user"])
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=30)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)
objects = st.dictionaries(keys | st.text(max_size=4), values)


@given(objects, st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" , ", " :\n")]))
def test_reading_token_by_token_agrees_with_reading_the_whole(document, ascii_only, separators):
    text = json.dumps(document, ensure_ascii=ascii_only, separators=separators).encode()
    model, prompt = body.scan(text)
    expected = document.get("model")
    assert model == (expected if isinstance(expected, str) else "")
    wanted = next(
        (document[key] for key in body.PROMPTS if isinstance(document.get(key), str | list | dict)),
        None,
    )
    assert (None if prompt is None else json.loads(prompt)) == wanted


@given(st.binary(max_size=300))
def test_no_bytes_do_harm(raw):
    from_body({}, raw)
    from_body({}, b'{"prompt":' + raw)
