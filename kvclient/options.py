"""What a client's calls use unless told otherwise."""

from __future__ import annotations

import os
from os import PathLike
from typing import Final, NamedTuple

from kvclient.errors import InvalidRequest
from kvclient.protocol import TIMEOUT_MS_MAX
from kvclient.url import Address, read_mode

KEYS_VARIABLE: Final = "RINGKV_KEYS"


class Options(NamedTuple):
    """Defaults of one client: the deadline of a call in seconds, and the wire's read mode."""

    timeout: float
    read_mode: int

    def timeout_of(self, timeout: float | None) -> float:
        """The deadline of one call."""
        return self.timeout if timeout is None else checked_timeout(timeout)

    def read_mode_of(self, read: str | None) -> int:
        """The read mode of one call."""
        return self.read_mode if read is None else read_mode(read)


def checked_timeout(timeout: float) -> float:
    """TypeError or InvalidRequest for what is no deadline; what the wire cannot say (49 days) is cut."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is a number of seconds, not {type(timeout).__name__}")
    if not timeout > 0:
        raise InvalidRequest(f"timeout is {timeout} s; it is above 0")
    return min(timeout, TIMEOUT_MS_MAX / 1000)


def with_keys(address: Address, keys: str | PathLike[str] | None) -> Address:
    """The address with the keys that are there, or those of RINGKV_KEYS; "": none. KeysError."""
    place = os.environ.get(KEYS_VARIABLE, "") if keys is None else os.fspath(keys)
    if not place:
        return address
    from kvclient.keys import load_client  # who has no keys does not pay for it

    found = load_client(place)
    found.require_routers(map(str, address.endpoints))
    return address._replace(keys=found)


def overridden(
    address: Address,
    codec: str | None,
    timeout: float | None,
    connect_timeout: float | None,
    read: str | None,
    keys: str | PathLike[str] | None,
) -> tuple[Address, Options]:
    """The address with what the caller of connect() wants differently. Connecting never takes longer than a
    call may.
    """
    address = with_keys(address, keys)
    if timeout is not None:
        address = address._replace(timeout=checked_timeout(timeout))
    if connect_timeout is not None:
        address = address._replace(connect_timeout=checked_timeout(connect_timeout))
    else:
        address = address._replace(connect_timeout=min(address.connect_timeout, address.timeout))
    if read is not None:
        address = address._replace(read=read)
    if codec is not None:
        address = address._replace(codec=codec)
    return address, Options(address.timeout, read_mode(address.read))
