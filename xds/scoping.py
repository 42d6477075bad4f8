"""A snapshot as one client may see it.

Every resource belongs to a pool (`Snapshot.owners`), or is nobody's and shown to nobody but those
who see everything. A tenant that sees one namespace whole gets listeners, routes and clusters that
were composed for that namespace alone (`Snapshot.tenants`): the common ones name everybody's pools.

A client that opens no tunnels gets the assignments of captured Pods with their plain addresses, as
istiod would write them for it: what it says of itself decides, and it can only lose by it.

Views are shared: all clients with the same scope have the same object, and a type of which nothing
changed for them keeps its identity, so that "is there news?" stays one comparison.
"""

from collections.abc import Mapping

from xds.access import EVERYTHING, Scope
from xds.istio.assignment import without_tunnels
from xds.snapshot import Resource, Resources, Snapshot, TypeUrl, version_of


class Views:
    """Views of the newest snapshot by scope. One owner; synchronous."""

    def __init__(self) -> None:
        self._views: dict[Scope, tuple[Snapshot, Snapshot]] = {}

    def view(self, snapshot: Snapshot, scope: Scope) -> Snapshot:
        if scope is EVERYTHING or scope == EVERYTHING:
            return snapshot
        known = self._views.get(scope)
        if known is not None and known[0] is snapshot:
            return known[1]
        view = scoped(snapshot, scope, known[0] if known else None, known[1] if known else None)
        self._views[scope] = snapshot, view
        return view

    def keep(self, scopes: set[Scope]) -> None:
        """Forget the views that nobody has any more."""
        self._views = {scope: view for scope, view in self._views.items() if scope in scopes}


def scoped(
    snapshot: Snapshot,
    scope: Scope,
    last_whole: Snapshot | None = None,
    last_view: Snapshot | None = None,
) -> Snapshot:
    """What of `snapshot` the scope admits; unchanged types are taken from the last view."""
    if scope == EVERYTHING:
        return snapshot
    own: Mapping[str, Resources] = snapshot.tenants.get(scope.namespace or "", {})
    same_owners = last_whole is not None and last_whole.owners == snapshot.owners
    types = {}
    for type_url, resources in snapshot.types.items():
        if type_url in own:
            types[type_url] = own[type_url]
        elif (
            last_view is not None
            and last_whole is not None
            and same_owners
            and last_whole.types.get(type_url) is resources
            and type_url in last_view.types
        ):
            types[type_url] = last_view.types[type_url]
        else:
            before = last_view.types.get(type_url) if last_view is not None else None
            types[type_url] = _admitted(resources, snapshot.owners, scope, before)
    return Snapshot(types, snapshot.owners)


def _admitted(
    resources: Resources, owners: Mapping[str, str], scope: Scope, before: Resources | None
) -> Resources:
    named = {
        name: resource if scope.tunnels else _plain(resource)
        for name, resource in resources.by_name.items()
        if scope.everything or ((owner := owners.get(name)) is not None and scope.admits(owner))
    }
    if before is not None and named == before.by_name:
        return before
    return Resources(version_of(named.values()), named)


def _plain(resource: Resource) -> Resource:
    if resource.type_url != TypeUrl.ENDPOINT:
        return resource
    if resource.plain is None:
        body = without_tunnels(resource.body)
        resource.plain = Resource(resource.type_url, resource.name, body)
    return resource.plain
