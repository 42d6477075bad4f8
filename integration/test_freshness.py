"""From a model server's metrics page to a weight in Envoy, end to end."""

from weir.bench import freshness


async def test_a_changed_page_changes_weights_in_envoy(tmp_path):
    # It fails where a weight does not follow; how long it takes is `make bench-xds`.
    assert len(await freshness.measure(tmp_path, lambda _: None, changes=2)) == 2
