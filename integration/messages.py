"""Envoy's messages by their JSON form, with the protocol's field names.

`envoy_data_plane` knows the messages. It loads a package when that is imported, so a type that is
named in JSON alone (`@type`) is looked up here. One that it lacks and istiod's listeners need,
xds.type.matcher.v3.IPMatcher, is added.
"""

import importlib
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import betterproto2
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration
from envoy_data_plane.message_pool import default_message_pool
from envoy_data_plane.xds.core.v3 import CidrRange
from envoy_data_plane.xds.type.matcher.v3 import MatcherOnMatch

TYPE = "@type"
CAMEL = re.compile(r"(?<=[a-z0-9])[A-Z]")
KINDS = {
    "clusters": Cluster,
    "endpoints": ClusterLoadAssignment,
    "listeners": Listener,
    "routes": RouteConfiguration,
}


@dataclass(eq=False, repr=False)
class IPRangeMatcher(betterproto2.Message):
    """https://github.com/cncf/xds/blob/main/xds/type/matcher/v3/ip.proto"""

    ranges: "list[CidrRange]" = betterproto2.field(  # noqa: RUF009 - as the generated ones
        1, betterproto2.TYPE_MESSAGE, repeated=True
    )
    on_match: "MatcherOnMatch | None" = betterproto2.field(  # noqa: RUF009
        2, betterproto2.TYPE_MESSAGE, optional=True
    )
    exclusive: "bool" = betterproto2.field(3, betterproto2.TYPE_BOOL)  # noqa: RUF009


@dataclass(eq=False, repr=False)
class IPMatcher(betterproto2.Message):
    range_matchers: "list[IPRangeMatcher]" = betterproto2.field(  # noqa: RUF009
        1, betterproto2.TYPE_MESSAGE, repeated=True
    )


default_message_pool.register_message(
    "xds.type.matcher.v3", "IPMatcher.IPRangeMatcher", IPRangeMatcher
)
default_message_pool.register_message("xds.type.matcher.v3", "IPMatcher", IPMatcher)


class UnknownTypeError(ValueError):
    """No message has this `@type`."""


@cache
def message_class(type_url):
    """The class of an `@type`. Raises `UnknownTypeError`."""
    package = type_url.rpartition("/")[2].rpartition(".")[0]
    try:
        importlib.import_module(f"envoy_data_plane.{package}")
        return default_message_pool.url_to_type[type_url]
    except (ImportError, KeyError):
        raise UnknownTypeError(f"no message is called {type_url!r}") from None


def message(cls, value):
    """The message of a JSON object, whose fields may be in snake_case or lowerCamelCase.

    Raises `UnknownTypeError`, `KeyError` for a field that `cls` does not have, and `ValueError`.
    """
    _load(value)
    with _istiods_age():
        return cls.from_dict(value)


def canonical(cls, value):
    """The JSON object as istiod prints it: snake_case, and without what has its default."""
    return message(cls, value).to_dict(casing=betterproto2.Casing.SNAKE)


def serialised(kind, value):
    """The bytes of one of the `KINDS`."""
    made = message(KINDS[kind], value)
    with _istiods_age():
        return bytes(made)


def snake(name):
    return CAMEL.sub(lambda match: f"_{match[0]}", name).lower()


@contextmanager
def _istiods_age():
    """istiod uses fields that are deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _load(value):
    if isinstance(value, dict):
        if TYPE in value:
            message_class(value[TYPE])
        for each in value.values():
            _load(each)
    elif isinstance(value, list):
        for each in value:
            _load(each)
