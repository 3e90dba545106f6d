"""The ports that tests give to servers: nobody's twice."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ports


@pytest.fixture(autouse=True)
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "next"
    monkeypatch.setattr(ports, "_NEXT", path)
    return path


def test_processes_side_by_side_are_given_different_ones(counter: Path) -> None:
    program = (
        "import sys, pathlib; from tests import ports; ports._NEXT = pathlib.Path(sys.argv[1]);"
        "print(*(port for _ in range(20) for port in ports.free_ports(3)))"
    )
    command = [sys.executable, "-c", program, str(counter)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    given = [port for one in running for port in one.communicate(timeout=60)[0].split()]
    assert len(given) == len(set(given)) == 180


def test_a_taken_port_is_passed_over_with_its_neighbours() -> None:
    (first,) = ports.free_ports(1)
    with socket.create_server(("127.0.0.1", first + 2)):
        assert first + 2 not in ports.free_ports(3)


def test_after_the_last_comes_the_first(counter: Path) -> None:
    (first,) = ports.free_ports(1)
    counter.write_text(str(len(ports._PORTS) - 1))
    given = ports.free_ports(2)
    assert len(given) == 2
    assert given.start < first + 100
