"""Envoy's messages by their JSON form, with the protocol's field names.

`envoy_data_plane` knows the messages. It loads a package when that is imported, so a type that is
named alone, in JSON as `@type`, is looked up here. What it lacks is in `istios_messages`.
"""

import importlib
import re
import warnings
from contextlib import contextmanager, suppress

import betterproto2
from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.endpoint.v3 import ClusterLoadAssignment
from envoy_data_plane.envoy.config.listener.v3 import Listener
from envoy_data_plane.envoy.config.route.v3 import RouteConfiguration
from envoy_data_plane.message_pool import default_message_pool

import integration.istios_messages  # noqa: F401 - it adds to the pool
from xds.snapshot import TypeUrl

TYPE = "@type"
CAMEL = re.compile(r"(?<=[a-z0-9])[A-Z]")
KINDS = {
    "clusters": Cluster,
    "endpoints": ClusterLoadAssignment,
    "listeners": Listener,
    "routes": RouteConfiguration,
}

URLS = {
    "clusters": TypeUrl.CLUSTER.value,
    "endpoints": TypeUrl.ENDPOINT.value,
    "listeners": TypeUrl.LISTENER.value,
    "routes": TypeUrl.ROUTE.value,
}


class UnknownTypeError(ValueError):
    """No message has this `@type`."""


class _Pool(dict):
    """Types by URL; the package of one that is asked for is loaded."""

    def __missing__(self, type_url):
        package = type_url.rpartition("/")[2].rpartition(".")[0]
        with suppress(ImportError):
            importlib.import_module(f"envoy_data_plane.{package}")
        if type_url in self:
            return self[type_url]
        raise UnknownTypeError(f"no message is called {type_url!r}")


default_message_pool.url_to_type = _Pool(default_message_pool.url_to_type)


def message_class(type_url):
    """The class of an `@type`. Raises `UnknownTypeError`."""
    return default_message_pool.url_to_type[type_url]


def message(cls, value):
    """The message of a JSON object, whose fields may be in snake_case or lowerCamelCase.

    Raises `UnknownTypeError`, `KeyError` for a field that `cls` does not have, and `ValueError`.
    """
    _load(value)
    with _istiods_age():
        return cls.from_dict(value)


def canonical(cls, value):
    """The JSON object as istiod prints it: snake_case, and without what has its default."""
    return _printed(message(cls, value))


def parsed(kind, body):
    """Bytes of one of the `KINDS` as canonical JSON. Raises `UnknownTypeError`."""
    with _istiods_age():
        return _printed(KINDS[kind].parse(body))


def serialised(kind, value):
    """The bytes of one of the `KINDS`."""
    made = message(KINDS[kind], value)
    with _istiods_age():
        return bytes(made)


def _printed(made):
    return made.to_dict(casing=betterproto2.Casing.SNAKE)


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
