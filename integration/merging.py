"""Protobuf's merge, as istiod does it, on JSON objects whose message is known.

    scalar          set
    message         merged, field by field; a Duration is replaced
    member of a
    oneof           as above; the members beside it go
    repeated        appended, or replaced with `replace_lists`
    map             entry by entry; an entry is replaced whole
    Any             replaced whole
    wrapper         replaced, but not by its zero: that is an empty message, which sets nothing

What is merged in is canonical (`messages.canonical`): a scalar with its default is not there, and
therefore changes nothing, as with protobuf itself. Not covered: a Struct or a wrapper inside an
Any that the caller does not open, which is part of its Any.
"""

from copy import deepcopy
from datetime import datetime, timedelta

from envoy_data_plane.google.protobuf import Any, Struct


def merge(cls, into, value, *, replace_lists=False):
    """Merge canonical `value` into `into`, in place; both are JSON objects of message `cls`."""
    for name, new in value.items():
        meta = cls._betterproto.meta_by_field_name[name]
        kind = cls._betterproto.cls_by_field.get(name)
        if meta.group:
            for other in cls._betterproto.oneof_field_by_group[meta.group]:
                if other.name != name:
                    into.pop(other.name, None)
        if meta.map_meta:
            into.setdefault(name, {}).update(deepcopy(new))
        elif meta.repeated:
            before = [] if replace_lists else into.get(name, [])
            into[name] = before + deepcopy(new)
        elif meta.unwrap and kind not in (timedelta, datetime):
            into[name] = new or into.get(name, new)
        elif meta.proto_type != "message" or meta.unwrap or kind is Any or name not in into:
            into[name] = deepcopy(new)
        elif kind is Struct:
            into[name].update(deepcopy(new))
        else:
            merge(kind, into[name], new, replace_lists=replace_lists)
