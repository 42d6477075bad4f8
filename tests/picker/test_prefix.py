from hypothesis import given
from hypothesis import strategies as st

from picker import prefix
from picker.prefix import BOUNDARIES, Prefix, PrefixIndex


def shared_by_a_naive_twin(one, two):
    """Bytes that two prompts share, down to a boundary that both have."""
    common = 0
    while common < min(len(one), len(two)) and one[common] == two[common]:
        common += 1
    ends = [b for b in BOUNDARIES if b <= common]
    if one == two and 0 < len(one) < prefix.WINDOW:
        ends.append(len(one))
    return max(ends, default=0)


texts = st.builds(
    lambda head, tail, times: (head * times + tail)[:70_000],
    st.binary(min_size=1, max_size=40),
    st.binary(max_size=40),
    st.integers(0, 3000),
)


@given(texts, texts, st.integers(0, 70_000))
def test_an_index_finds_as_much_as_two_prompts_share_to_a_boundary(one, two, common):
    second = one[:common] + two
    index = PrefixIndex()
    index.learn("a", prefix.of_text("m", one), 1e9)
    found = index.match(prefix.of_text("m", second)).get("a", 0)
    assert found == shared_by_a_naive_twin(one, second)


def test_the_last_digest_is_the_whole_prompts_where_it_fits_the_window():
    assert prefix.ends(100) == (100,)
    assert prefix.ends(1024) == (1024,)
    assert prefix.ends(1500) == (1024, 1500)
    assert prefix.ends(0) == ()
    assert prefix.ends(1_000_000) == BOUNDARIES


def test_models_share_nothing():
    index = PrefixIndex()
    index.learn("a", prefix.of_text("one", b"x" * 5000), 1e9)
    assert index.match(prefix.of_text("two", b"x" * 5000)) == {}


def test_digests_of_the_filter_and_of_a_body_are_never_taken_for_each_other():
    index = PrefixIndex()
    index.learn("a", prefix.of_text("m", b"x" * 5000), 1e9)
    digests = ["00000000"] * len(prefix.ends(5000))
    assert index.match(prefix.of_digests("m", digests, 5000)) == {}


def test_the_same_digest_at_another_boundary_is_another_key():
    made = prefix.of_digests("m", ["00000001", "00000001"], 2048)
    assert len(set(made.keys)) == 2


def test_what_is_used_least_recently_goes_first_and_the_end_of_a_prompt_before_its_beginning():
    index = PrefixIndex()
    old, new = (prefix.of_text("m", text * 4096) for text in (b"o", b"n"))
    index.learn("a", old, 8192)
    index.learn("a", new, 8192)
    index.learn("a", prefix.of_text("m", b"x" * 2048), 8192)
    assert index.match(new)["a"] == 4096
    assert index.match(old)["a"] == 2048
    assert index.sizes()["a"] == 8192


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.integers(1, 20_000))),
    st.integers(1, 50_000),
)
def test_an_endpoint_is_never_believed_to_hold_more_than_it_can_or_was_sent(sent, capacity):
    index = PrefixIndex()
    longest = 0
    for endpoint, which, length in sent:
        index.learn(endpoint, prefix.of_text("m", bytes([which]) * length), capacity)
        longest = max(longest, min(length, prefix.WINDOW))
        assert all(size <= max(capacity, longest) for size in index.sizes().values())
    index.keep([])
    assert index.sizes() == {}
    assert index.match(prefix.of_text("m", b"\0" * 5000)) == {}


def test_a_prompt_without_a_prefix_matches_nothing():
    assert PrefixIndex().match(Prefix()) == {}
