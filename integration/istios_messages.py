"""Messages that istiod's listeners have in them and `envoy_data_plane` does not know."""

from dataclasses import dataclass

import betterproto2
from envoy_data_plane.google.protobuf import Struct
from envoy_data_plane.message_pool import default_message_pool
from envoy_data_plane.xds.core.v3 import CidrRange
from envoy_data_plane.xds.type.matcher.v3 import MatcherOnMatch

# ruff: noqa: RUF009 - fields as the generated ones have them


@dataclass(eq=False, repr=False)
class IPRangeMatcher(betterproto2.Message):
    """https://github.com/cncf/xds/blob/main/xds/type/matcher/v3/ip.proto"""

    ranges: "list[CidrRange]" = betterproto2.field(1, betterproto2.TYPE_MESSAGE, repeated=True)
    on_match: "MatcherOnMatch | None" = betterproto2.field(
        2, betterproto2.TYPE_MESSAGE, optional=True
    )
    exclusive: "bool" = betterproto2.field(3, betterproto2.TYPE_BOOL)


@dataclass(eq=False, repr=False)
class IPMatcher(betterproto2.Message):
    range_matchers: "list[IPRangeMatcher]" = betterproto2.field(
        1, betterproto2.TYPE_MESSAGE, repeated=True
    )


@dataclass(eq=False, repr=False)
class TypedStruct(betterproto2.Message):
    """https://github.com/cncf/xds/blob/main/udpa/type/v1/typed_struct.proto"""

    type_url: "str" = betterproto2.field(1, betterproto2.TYPE_STRING)
    value: "Struct | None" = betterproto2.field(2, betterproto2.TYPE_MESSAGE, optional=True)


class AlpnProtocol(betterproto2.Enum):
    HTTP10 = 0
    HTTP11 = 1
    HTTP2 = 2


@dataclass(eq=False, repr=False)
class AlpnOverride(betterproto2.Message):
    """https://github.com/istio/api/blob/master/envoy/config/filter/http/alpn/v2alpha1/config.proto"""

    upstream_protocol: "AlpnProtocol" = betterproto2.field(
        1, betterproto2.TYPE_ENUM, default_factory=lambda: AlpnProtocol(0)
    )
    alpn_override: "list[str]" = betterproto2.field(2, betterproto2.TYPE_STRING, repeated=True)


@dataclass(eq=False, repr=False)
class AlpnFilterConfig(betterproto2.Message):
    alpn_override: "list[AlpnOverride]" = betterproto2.field(
        1, betterproto2.TYPE_MESSAGE, repeated=True
    )


ALPN = "istio.envoy.config.filter.http.alpn.v2alpha1"
for package, name, cls in (
    ("xds.type.matcher.v3", "IPMatcher.IPRangeMatcher", IPRangeMatcher),
    ("xds.type.matcher.v3", "IPMatcher", IPMatcher),
    ("udpa.type.v1", "TypedStruct", TypedStruct),
    (ALPN, "FilterConfig.AlpnOverride", AlpnOverride),
    (ALPN, "FilterConfig", AlpnFilterConfig),
):
    default_message_pool.register_message(package, name, cls)
