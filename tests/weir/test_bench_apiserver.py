import asyncio
import gc
import json
import socket
import warnings
from contextlib import asynccontextmanager

import aiohttp

from weir.bench.apiserver import ApiServer, Store


def item(name, namespace="ns"):
    return {"metadata": {"name": name, "namespace": namespace}}


@asynccontextmanager
async def served(*, bookmark_seconds=60.0):
    api = ApiServer(["pods.", "services."], page=2)
    api.bookmark_seconds = bookmark_seconds
    await api.start()
    try:
        async with aiohttp.ClientSession(api.url) as client:
            yield api, client
    finally:
        await api.stop()


async def listed(client, **query):
    async with client.get("/api/v1/pods", params=query) as answer:
        return await answer.json()


async def watched(client, **query):
    """The first event of a watch."""
    given = {"watch": "true", "timeoutSeconds": "5"} | query
    async with client.get("/api/v1/pods", params=given) as answer:
        return json.loads(await answer.content.readline())


async def test_a_server_that_stops_loses_no_connection_that_comes_just_then():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for turns in range(6):
            api = ApiServer([])
            await api.start()
            with socket.create_connection(("127.0.0.1", api.port)):
                for _ in range(turns):
                    await asyncio.sleep(0)
                await api.stop()
        gc.collect()
    assert not said


async def test_pages_of_a_list_are_of_one_revision():
    async with served() as (api, client):
        for name in "abc":
            api.store.put("pods.", item(name))
        first = await listed(client, limit="10")
        api.store.put("pods.", item("d"))
        rest = await listed(client, **{"continue": first["metadata"]["continue"]})
        assert [each["metadata"]["name"] for each in first["items"] + rest["items"]] == ["a", *"bc"]
        versions = {each["metadata"]["resourceVersion"] for each in (first, rest)}
        assert versions == {"4"}


async def test_a_watch_goes_on_after_the_revision_that_it_names():
    async with served() as (api, client):
        api.store.put("pods.", item("a"))
        api.store.put("services.", item("s"))
        waiting = asyncio.create_task(watched(client, resourceVersion=str(api.store.revision)))
        await asyncio.sleep(0.05)
        api.store.delete("pods.", "a", "ns")
        event = await waiting
        assert (event["type"], event["object"]["metadata"]["resourceVersion"]) == ("DELETED", "4")


async def test_a_quiet_watch_that_wants_bookmarks_is_told_how_far_it_is():
    async with served(bookmark_seconds=0.05) as (api, client):
        api.store.put("services.", item("s"))
        event = await watched(client, resourceVersion="1", allowWatchBookmarks="true")
        assert event == {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "2"}}}


def test_history_is_of_what_was_put_at_that_time():
    store = Store()
    document = item("a")
    store.put("pods.", document)
    document["spec"] = "later"
    store.put("pods.", document)
    first, second = (json.loads(each.text) for each in store.since(1))
    assert "spec" not in first
    assert second["spec"] == "later"
    assert [each.kind for each in store.since(2)] == ["MODIFIED"]
