"""The router's configuration: the smallest file, the limits, and what several keys together get wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.config import LimitsSection, RouterConfig, RouterSection
from shared.config import ConfigError, LogSection, dump, load
from shared.units import Endpoint

SMALLEST = {"router.name": "router1", "stores": "tcp://127.0.0.1:7200"}


def problems(**overrides: str) -> list[str]:
    settings = SMALLEST | {key.replace("__", "."): text for key, text in overrides.items()}
    with pytest.raises(ConfigError) as caught:
        load(RouterConfig, None, {}, settings)
    return [f"{error.path}: {error.text}" for error in caught.value.errors]


def test_the_smallest_configuration_has_safe_defaults() -> None:
    assert load(RouterConfig, None, {}, SMALLEST) == RouterConfig(
        router=RouterSection("router1", Endpoint("tcp://127.0.0.1:7100")),
        stores=(Endpoint("tcp://127.0.0.1:7200"),),
        limits=LimitsSection(value_bytes=1 << 20, in_flight=20_000, in_flight_bytes=256 << 20),
        log=LogSection("info", "json"),
        insecure=False,
    )


def test_a_file_as_an_operator_writes_it_and_back(tmp_path: Path) -> None:
    path = tmp_path / "router.yaml"
    path.write_text("""
router:
  name: router1
  listen: tcp://0.0.0.0:7100
stores:
  - tcp://10.0.0.1:7200
  - tcp://store2.example:7200
limits: {value_bytes: 8MiB, in_flight: 100, in_flight_bytes: 1GiB}
insecure: true
""")
    config = load(RouterConfig, path)
    assert (config.limits.value_bytes, config.limits.in_flight_bytes) == (8 << 20, 1 << 30)
    path.write_text(dump(config))
    assert load(RouterConfig, path) == config


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("limits__value_bytes", "9MiB", "must be between 1B and 8MiB, not 9MiB"),
        ("limits__value_bytes", "0", "must be between 1B and 8MiB, not 0B"),
        ("limits__in_flight", "0", "must be between 1 and 1000000, not 0"),
        ("limits__in_flight_bytes", "15MiB", "must be between 16MiB and 1TiB, not 15MiB"),
        (
            "router__name",
            "a b",
            "must be 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit, not 'a b'",
        ),
        ("router__listen", "7100", "expected an endpoint such as tcp://127.0.0.1:7100, got '7100'"),
    ],
)
def test_limits(key: str, text: str, words: str) -> None:
    assert problems(**{key: text}) == [f"{key.replace('__', '.')}: {words}"]


def test_a_router_without_stores_is_refused() -> None:
    assert problems(stores="[]") == ["stores: must name at least one store, such as tcp://127.0.0.1:7200"]


def test_stores_must_differ_and_be_addresses_to_connect_to() -> None:
    assert problems(stores="tcp://a:1,tcp://*:7200,tcp://a:1,tcp://0.0.0.0:1,tcp://b:0") == [
        "stores[1]: tcp://*:7200 is no address to connect to: name host and port",
        "stores[2]: tcp://a:1 is there twice",
        "stores[3]: tcp://0.0.0.0:1 is no address to connect to: name host and port",
        "stores[4]: tcp://b:0 is no address to connect to: name host and port",
    ]


def test_a_configuration_cannot_be_changed() -> None:
    config = load(RouterConfig, None, {}, SMALLEST)
    with pytest.raises(AttributeError):
        config.insecure = True  # type: ignore[misc]
