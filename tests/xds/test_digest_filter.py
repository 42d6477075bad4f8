"""`xds/digest.lua` in LuaJIT, which is what Envoy runs, against a twin in Python."""

import importlib.util
import json
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from lupa import luajit21

from picker import prefix
from picker.request import from_body, from_headers

spec = importlib.util.spec_from_file_location("digests", Path(__file__).with_name("digests.py"))
digests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(digests)

HARNESS = b"""
return function(get, remove, replace, text, asked)
  local headers = {}
  function headers:get(name) return get(name) end
  function headers:remove(name) remove(name) end
  function headers:replace(name, value) replace(name, value) end
  local body = {}
  function body:length() return #text end
  function body:getBytes(from, count) return string.sub(text, from + 1, from + count) end
  local handle = {}
  function handle:headers() return headers end
  function handle:body() asked(); return body end
  envoy_on_request(handle)
end
"""
OURS = {"x-weir-digest", "x-weir-affinity", "x-gateway-model-name"}


class Filter:
    def __init__(self):
        runtime = luajit21.LuaRuntime(encoding=None)
        runtime.execute(files("xds").joinpath("digest.lua").read_bytes())
        self._call = runtime.execute(HARNESS)
        self.asked = 0

    def __call__(self, body, **given):
        """Our headers as the filter leaves them."""
        sent = {"content-length": str(len(body))}
        sent |= {name.replace("_", "-"): value for name, value in given.items()}
        held = {name.encode(): value.encode() for name, value in sent.items()}

        def asked():
            self.asked += 1

        self._call(held.get, lambda name: held.pop(name, None), held.__setitem__, body, asked)
        return {n.decode(): v.decode() for n, v in held.items() if n.decode() in OURS}


run = Filter()


@pytest.mark.parametrize(
    ("body", "model", "prompt"),
    [
        (b'{"model":"a","prompt":"xyz"}', "a", b'"xyz"'),
        (b'{"prompt":"xyz","model":"a"}', "a", b'"xyz"'),
        (b' \n{ "model" : "a" , "prompt" : [1, 2] } ', "a", b"[1, 2]"),
        (b'{"messages":[{"model":"no","content":"\\"model\\":\\"no\\""}],"model":"a"}', "a", ...),
        (b'{"metadata":{"model":"no","prompt":"no"},"model":"a","prompt":"x"}', "a", b'"x"'),
        (b'{"user":"\\"model\\":\\"no\\"","model":"a","prompt":"x"}', "a", b'"x"'),
        (b'{"\\u006dodel":"a","prompt":"x"}', "a", b'"x"'),
        (b'{"model":"a\\/b\\u00e9\\ud83d\\ude00","prompt":"x"}', "a/b\u00e9\U0001f600", b'"x"'),
        (b'{"model":"a\\\\","prompt":"x\\\\"}', "a\\", b'"x\\\\"'),
        (b'{"model":"a","model":"b","prompt":"x","prompt":"y"}', "b", b'"y"'),
        (b'{"input":"i","messages":["m"],"prompt":"p","model":"a"}', "a", b'"p"'),
        (b'{"prompt":null,"messages":["m"],"model":"a"}', "a", b'["m"]'),
        (b'{"model":5,"prompt":"x"}', None, b'"x"'),
        (b'{"model":"","prompt":"x"}', None, b'"x"'),
        (b'{"model":"a\\nb","prompt":"x"}', None, b'"x"'),
        (b'{"model":"' + b"m" * 257 + b'","prompt":"x"}', None, b'"x"'),
        (b'{"model":"a"}', "a", None),
        (b'{"prompt":""}', None, b'""'),
        (b'["model","a"]', None, None),
        (b'"model"', None, None),
        (b"{}", None, None),
        (b"not json", None, None),
        (b'{"model', None, None),
        (b"\xff\xfe{", None, None),
    ],
)
def test_model_and_prompt_are_found_at_the_top_level_only(body, model, prompt):
    if prompt is ...:
        prompt = body[body.index(b"[") : body.index(b"]") + 1]
    assert run(body) == digests.headers(body, prompt, model)


def test_a_model_after_a_prompt_longer_than_the_window_is_found():
    body = json.dumps({"messages": [{"content": 'a "quoted" line\n' * 20_000}], "model": "late"})
    assert run(body.encode())["x-gateway-model-name"] == "late"


def test_what_a_client_sent_under_our_names_is_gone():
    claims = {"x_weir_digest": "v1;1;1;0", "x_weir_affinity": "me", "x_gateway_model_name": "other"}
    assert run(b"not json", **claims) == {}
    assert run(b"", **claims) == {}
    assert run(b'{"prompt":"x"}', **claims)["x-weir-affinity"].startswith("00000000;")


@pytest.mark.parametrize("length", ["5000000", "0", "", "many"])
def test_a_body_that_envoy_would_not_buffer_is_never_asked_for(length):
    before = run.asked
    assert run(b'{"model":"a","prompt":"x"}', content_length=length) == {}
    assert run.asked == before


keys = st.sampled_from(["model", "prompt", "messages", "input", "stream", "max_tokens"])
texts = st.text(max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | texts, inner, max_size=3),
)
long_texts = st.builds(lambda part, times: part * times, st.text(min_size=1), st.integers(0, 3000))
documents = st.fixed_dictionaries(
    {},
    optional={"model": texts, "prompt": long_texts | values, "messages": values, "stream": values},
)


@given(documents, st.booleans(), st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")]))
def test_the_headers_are_the_twins(document, ascii_only, separators):
    body, expected = digests.of_document(document, separators=separators, ascii_only=ascii_only)
    assert run(body) == expected


@given(st.binary(max_size=300), st.integers(0, 300))
def test_no_bytes_make_it_fail(raw, cut):
    run(raw)
    run(b'{"model":"a","messages":[{"content":"' + raw)
    run(json.dumps({"prompt": raw.hex(), "model": "a"}).encode()[:cut])


@given(long_texts, texts, texts)
def test_prefixes_found_by_digests_and_by_the_body_agree_to_within_a_boundary(head, one, two):
    """Bodies spelled alike: the picker sees as much of a shared prefix either way."""
    bodies = [json.dumps({"prompt": head + tail, "model": "m"}).encode() for tail in (one, two)]
    assume(max(map(len, bodies)) <= 1_000_000)  # larger ones the filter leaves alone
    found = []
    for read in (
        lambda body: from_headers(run(body) | {"content-length": str(len(body))}, trusted=True),
        lambda body: from_body({}, body),
    ):
        index = prefix.PrefixIndex()
        first, second = map(read, bodies)
        assert first.model == "m"
        index.learn("a", first.prefix, 1e12)
        found.append(index.match(second.prefix).get("a", 0))
    assert found[0] == found[1]


@given(st.binary(min_size=1, max_size=9000), st.integers(0, 8999), st.integers(1, 255))
def test_every_byte_counts_from_its_boundary_on(raw, place, change):
    place %= len(raw)
    other = raw[:place] + bytes([raw[place] ^ change]) + raw[place + 1 :]
    one, two = digests.digests(raw), digests.digests(other)
    same = [a == b for a, b in zip(one, two, strict=True)]
    ends = prefix.ends(len(raw))
    assert same == [end <= place for end in ends]
