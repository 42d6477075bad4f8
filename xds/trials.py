"""Which policy of a pool is in effect: a new one is on trial before everybody has it.

    new policy ──► waiting ──► candidate (shown to one client) ──► in effect
                                   │ refused                          │ most clients refuse it
                                   └────────► quarantined ◄───────────┘
                                              the one before is in effect again

One policy is on trial at a time, so a refusal, be it of routes that pools share, is about that one.
A pool's first policy is in effect at once: there is none to go back to. Quarantine ends when the
operator's policy changes. Pure: somebody else finds a client and listens to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xds.pool import Policy, Pool, PoolName


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Something that clients refused, and what they said."""

    what: str  # "policy" or "weights"
    reason: str


@dataclass(slots=True)
class Trials:
    """One owner; synchronous."""

    in_effect: dict[PoolName, Policy] = field(default_factory=dict)
    quarantined: dict[PoolName, Quarantine] = field(default_factory=dict)
    _wanted: dict[PoolName, Policy] = field(default_factory=dict)
    _before: dict[PoolName, Policy] = field(default_factory=dict)

    def configure(self, pools: Iterable[Pool]) -> None:
        """What the operator wants now."""
        wanted = {pool.name: pool.policy for pool in pools}
        for name in self._wanted.keys() - wanted.keys():
            for each in (self.in_effect, self.quarantined, self._before):
                each.pop(name, None)
        for name, policy in wanted.items():
            if policy != self._wanted.get(name):
                self.quarantined.pop(name, None)
            self.in_effect.setdefault(name, policy)
        self._wanted = wanted

    @property
    def candidate(self) -> PoolName | None:
        """The pool whose policy is to be tried now."""
        return next(
            (
                name
                for name, policy in self._wanted.items()
                if policy != self.in_effect[name] and name not in self.quarantined
            ),
            None,
        )

    def tried(self) -> Mapping[PoolName, Policy]:
        """The policies as the client sees them that tries the candidate."""
        name = self.candidate
        return self.in_effect if name is None else self.in_effect | {name: self._wanted[name]}

    def accept(self) -> None:
        """The candidate is fine, or nobody is there to say otherwise."""
        if (name := self.candidate) is not None:
            self._before[name] = self.in_effect[name]
            self.in_effect[name] = self._wanted[name]

    def refuse(self, reason: str) -> None:
        """The client that tried the candidate refused it."""
        if (name := self.candidate) is not None:
            self.quarantined[name] = Quarantine("policy", reason)

    def roll_back(self, name: PoolName, reason: str) -> bool:
        """Most clients refuse the policy in effect; False if there is none to go back to."""
        before = self._before.pop(name, None)
        if before is None:
            return False
        self.in_effect[name] = before
        self.quarantined[name] = Quarantine("policy", reason)
        return True
