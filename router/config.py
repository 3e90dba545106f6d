"""What can be configured of a router: names, units, defaults and limits. Loaded by `shared.config.load`."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from kvclient.protocol import REQUEST_BYTES_MAX, VALUE_BYTES_MAX, VALUE_BYTES_MAX_CONFIGURABLE
from shared.config import LogSection
from shared.fields import address_or_none, between, name_like, size_between, stores_to_ask
from shared.security import SecuritySection
from shared.units import Endpoint, Size


@attrs.frozen
class RouterSection:
    """Who this router is and where clients find it."""

    name: str = attrs.field(validator=name_like)
    listen: Endpoint = attrs.field(default=Endpoint("tcp://127.0.0.1:7100"))
    advertise: str = attrs.field(default="", validator=address_or_none)


@attrs.frozen
class LimitsSection:
    """What a router accepts. Beyond the in-flight limits it answers BUSY, so they bound its memory."""

    value_bytes: Size = attrs.field(
        default=Size(VALUE_BYTES_MAX), validator=size_between(1, VALUE_BYTES_MAX_CONFIGURABLE)
    )
    in_flight: int = attrs.field(default=20_000, validator=between(1, 1_000_000))
    in_flight_bytes: Size = attrs.field(
        # At least one request of the largest size, or it could never be served.
        default=Size(256 << 20),
        validator=size_between(REQUEST_BYTES_MAX, 1 << 40),
    )


@attrs.frozen
class RouterConfig:
    """The whole configuration of a router process.

    `stores` are rpc endpoints of some store nodes: the first to answer gives the map, and with it all others.
    """

    router: RouterSection
    stores: tuple[Endpoint, ...]
    limits: LimitsSection = attrs.field(factory=LimitsSection)
    log: LogSection = attrs.field(factory=LogSection)
    security: SecuritySection = attrs.field(factory=SecuritySection)
    insecure: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with fields taken together."""
        yield from stores_to_ask(self.stores)
