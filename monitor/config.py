"""What can be configured of a monitor: names, units, defaults and limits. Loaded by `shared.config.load`."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from shared.config import LogSection
from shared.fields import name_like, stores_to_ask
from shared.security import SecuritySection
from shared.units import Endpoint


@attrs.frozen
class MonitorSection:
    """Who this monitor is."""

    name: str = attrs.field(default="monitor", validator=name_like)


@attrs.frozen
class HttpSection:
    """Where people and Prometheus find it. Whoever reaches that address may read everything: names, addresses
    and figures, never keys or values.
    """

    listen: Endpoint = attrs.field(default=Endpoint("tcp://127.0.0.1:7300"))


@attrs.frozen
class MonitorConfig:
    """The whole configuration of a monitor process.

    `stores` are rpc endpoints of some store nodes: the first to answer gives the map, and with it all others.
    """

    stores: tuple[Endpoint, ...]
    monitor: MonitorSection = attrs.field(factory=MonitorSection)
    http: HttpSection = attrs.field(factory=HttpSection)
    log: LogSection = attrs.field(factory=LogSection)
    security: SecuritySection = attrs.field(factory=SecuritySection)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with fields taken together."""
        yield from stores_to_ask(self.stores)
