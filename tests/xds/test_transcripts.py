"""The subscription machine, by transcripts: one file, one conversation about one type.

sotw endpoint | delta cluster     form and type, once
world  a=1 b=2                    what the control plane has from now on
>      ask a b                    first or further request (delta: +name -name; have: a=1)
>      ack 1 | nack 1             the answer to the response with nonce 1 (names: a b; +a;
                                  because: the reason of a NACK)
<      2: a=1 -b | nothing        what is sent now: nonce, resources, removals
reconnect                         a new stream of the same client
"""

from pathlib import Path

import pytest

from xds.discovery import DeltaRequest, SotwRequest
from xds.snapshot import Snapshot, TypeUrl
from xds.subscription import DeltaSubscription, SotwSubscription

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
TYPES = {"endpoint": TypeUrl.ENDPOINT, "cluster": TypeUrl.CLUSTER}


class Conversation:
    def __init__(self, form, kind):
        self.form, self.type_url = form, TYPES[kind]
        self.snapshot = Snapshot({})
        self.versions = {}  # of bodies
        self.reconnect()

    def reconnect(self):
        machine = SotwSubscription if self.form == "sotw" else DeltaSubscription
        self.subscription = machine(self.type_url)
        self.names, self.responses = [], {}

    def world(self, *pairs):
        bodies = {name: text.encode() for name, _, text in (pair.partition("=") for pair in pairs)}
        self.snapshot = Snapshot.of({self.type_url: bodies}, self.snapshot)
        for resource in self.snapshot.types[self.type_url].by_name.values():
            self.versions[f"{resource.name}={resource.body.decode()}"] = resource.version

    def ask(self, *words):
        words, have = until(words, "have:")
        words, version = until(words, "version:")
        self.send(words, have, "", None, "last" if version else "")

    def ack(self, nonce, *words, error=None):
        words, named = until(words, "names:")
        names = named or (self.names if self.form == "sotw" else words)
        self.send(names, [], nonce, error, self.responses[nonce].version)

    def nack(self, nonce, *words):
        words, reason = until(words, "because:")
        self.ack(nonce, *words, error=" ".join(reason) or "refused")

    def send(self, words, have, nonce, error, version):
        if self.form == "sotw":
            self.names = words
            request = SotwRequest(words, version, nonce, error)
        else:
            request = DeltaRequest(
                subscribe=[word[1:] for word in words if word[0] == "+"],
                unsubscribe=[word[1:] for word in words if word[0] == "-"],
                initial_versions={
                    each.partition("=")[0]: self.versions.get(each, each) for each in have
                },
                nonce=nonce,
                error=error,
            )
        self.subscription.request(request)

    def take(self):
        response = self.subscription.respond(self.snapshot.types.get(self.type_url))
        if response is None:
            return "nothing"
        self.responses[response.nonce] = response
        resources = sorted(f"{each.name}={each.body.decode()}" for each in response.resources)
        removed = sorted(f"-{name}" for name in response.removed)
        return f"{response.nonce}: {' '.join([*resources, *removed])}".strip()


def until(words, mark):
    """The words before a mark, and those after it."""
    if mark not in words:
        return list(words), []
    place = words.index(mark)
    return list(words[:place]), list(words[place + 1 :])


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path):
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    talk = Conversation(*lines[0].split())
    for number, line in enumerate(lines[1:], 2):
        side, *words = line.split()
        if side == "<":
            assert talk.take() == " ".join(words), f"line {number}: {line}"
        elif side == ">":
            getattr(talk, words[0])(*words[1:])
        else:
            getattr(talk, side)(*words)


def test_there_are_transcripts_of_both_forms():
    assert {path.name.partition("-")[0] for path in TRANSCRIPTS} == {"sotw", "delta"}
