"""Clients that do what clients may do, at random, against a naive twin that applies responses."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from xds.discovery import DeltaRequest, SotwRequest
from xds.snapshot import Snapshot, TypeUrl
from xds.subscription import DeltaSubscription, SotwSubscription

NAMES = "abcd"
names = st.sets(st.sampled_from(NAMES), max_size=4)
worlds = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["1", "2", "3"]))
deeds = st.lists(
    st.one_of(
        st.tuples(st.just("world"), worlds),
        st.tuples(st.just("names"), names),
        st.tuples(st.just("answer"), st.booleans()),
        st.tuples(st.just("push"), st.none()),
        st.tuples(st.just("reconnect"), st.none()),
        st.tuples(st.just("nonsense"), st.sampled_from(["", "0", "7", "another stream's"])),
    ),
    max_size=40,
)


class Twin:
    """A client as Envoy is one: it has what it accepted, in either form."""

    def __init__(self, form, type_url, wildcard):
        self.form, self.type_url, self.wildcard = form, type_url, wildcard
        self.snapshot = Snapshot.of({type_url: {}})
        self.names, self.has, self.versions = {"a"}, {}, {}
        self.refused = {}  # name → version, until it was offered another
        self.asked_anew = set()  # since the response that is unanswered: of these it says nothing
        self.connect()

    def connect(self):
        made = SotwSubscription if self.form == "sotw" else DeltaSubscription
        self.machine, self.unanswered = made(self.type_url), None
        self.refused.clear()
        self.sent, self.refusals = {}, 0  # versions on this stream; refusals of several at once
        self.nonce = ""
        if self.form == "sotw":
            self.machine.request(SotwRequest(names=self.asked()))
        else:
            kept = {name: self.versions[name] for name in self.has}
            self.machine.request(DeltaRequest(subscribe=self.asked(), initial_versions=kept))

    def nonsense(self, nonce):
        """Answers to what was never sent, or was answered long ago, some of them refusals."""
        if nonce == (self.unanswered.nonce if self.unanswered else self.nonce):
            return  # that would be a proper answer
        error = "no" if nonce == "7" else None
        if self.form == "delta":
            self.machine.request(DeltaRequest(nonce=nonce, error=error))
        elif nonce:
            self.machine.request(SotwRequest(["nobody"], "x", nonce, error))

    def asked(self):
        return ["*"] if self.wildcard else sorted(self.names)

    def rename(self, wanted):
        if self.wildcard or not wanted:
            return
        gone, fresh = self.names - wanted, wanted - self.names
        self.names = set(wanted)
        for name in gone:
            self.has.pop(name, None)
        self.asked_anew |= gone | fresh
        for name in gone | fresh:
            self.refused.pop(name, None)
            self.sent.pop(name, None)
        if self.form == "delta":
            self.machine.request(DeltaRequest(subscribe=fresh, unsubscribe=gone))
        elif self.unanswered is None:
            self.machine.request(SotwRequest(self.asked(), "", self.nonce))
        else:
            self.answer(True)  # state of the world: names travel with answers

    def push(self):
        response = self.machine.respond(self.snapshot.types[self.type_url])
        if response is None:
            return False
        assert self.unanswered is None, "one at a time"
        due = [r for r in response.resources if self.refused.get(r.name) == r.version]
        if self.form == "delta" or not self.wildcard:
            assert not due, "refused bytes were offered again"
        for resource in response.resources:
            twice = self.sent.get(resource.name) == resource.version
            alone_now = self.refusals and len(response.resources) == 1
            listed = self.form == "sotw" and self.wildcard
            assert listed or alone_now or not twice, "sent twice for one version"
            self.sent[resource.name] = resource.version
        for name in response.removed:
            self.sent.pop(name, None)
        self.unanswered, self.asked_anew = response, set()
        return True

    def answer(self, accept):
        response, self.unanswered = self.unanswered, None
        if response is None:
            return
        self.nonce = response.nonce
        if accept:
            if self.form == "sotw" and self.wildcard:
                self.has.clear()
            for resource in response.resources:
                if self.wildcard or resource.name in self.names:
                    self.has[resource.name] = resource.body.decode()
                    self.versions[resource.name] = resource.version
                    self.refused.pop(resource.name, None)
            for name in response.removed:
                self.has.pop(name, None)
        else:
            new = {
                r.name: r.version
                for r in response.resources
                if r.name not in self.asked_anew
                and (self.versions.get(r.name) != r.version or r.name not in self.has)
            }
            if len(new) == 1:  # else each is offered once more, alone
                self.refused |= new
            self.refusals += len(new) > 1
        error = None if accept else "no"
        if self.form == "sotw":
            self.machine.request(SotwRequest(self.asked(), response.version, self.nonce, error))
        else:
            self.machine.request(DeltaRequest(nonce=self.nonce, error=error))


def live(form, kind, wildcard, history, final):
    twin = Twin(form, kind, wildcard)
    for deed, argument in history:
        match deed:
            case "world":
                bodies = {name: text.encode() for name, text in argument.items()}
                twin.snapshot = Snapshot.of({kind: bodies}, twin.snapshot)
            case "names":
                twin.rename(argument)
            case "answer":
                twin.answer(argument)
            case "push":
                twin.push()
            case "reconnect":
                twin.connect()
            case "nonsense":
                twin.nonsense(argument)
    # From here on the client accepts everything, and what it refused has changed.
    twin.answer(True)
    bodies = {name: f"final {text}".encode() for name, text in final.items()}
    twin.snapshot = Snapshot.of({kind: bodies}, twin.snapshot)
    for _ in range(20):
        if not twin.push():
            break
        twin.answer(True)
    else:
        raise AssertionError("it never comes to rest")
    return twin


ANEW = [
    *(("world", {"a": "1"}), ("push", None), ("names", {"b"}), ("names", {"a"})),
    *(("answer", False), ("push", None)),
]


@settings(max_examples=300)
@example("delta", ANEW, {})  # refused after it was asked for anew: it is offered once more
@given(st.sampled_from(["sotw", "delta"]), deeds, worlds)
def test_a_client_of_names_ends_with_the_newest_of_what_it_asked_for(form, history, final):
    twin = live(form, TypeUrl.ENDPOINT, False, history, final)
    wanted = {name: f"final {text}" for name, text in final.items() if name in twin.names}
    assert {name: twin.has.get(name) for name in wanted} == wanted


@settings(max_examples=300)
@given(st.sampled_from(["sotw", "delta"]), deeds, worlds)
def test_a_client_of_everything_ends_with_everything_and_nothing_else(form, history, final):
    twin = live(form, TypeUrl.CLUSTER, True, history, final)
    assert twin.has == {name: f"final {text}" for name, text in final.items()}
