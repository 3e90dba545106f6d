"""`kvcli dev partition` and `heal` without servers: who is kept from whom, and the files that say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvclient.cli import devnetwork, devrun
from kvclient.cli.devcluster import DevCluster, Member, Shape
from kvclient.cli.failure import Failure
from kvclient.cli.main import run
from kvclient.errors import Exit


@pytest.fixture
def cluster(tmp_path: Path) -> DevCluster:
    made = DevCluster(tmp_path / "dev", Shape(4, 1, 16, 7100))
    made.save()
    return made


@pytest.mark.parametrize(
    ("sides", "pairs"),
    [
        (["store1"], {(1, 2), (1, 3), (1, 4)}),
        (["store3,store1"], {(1, 3)}),
        (["store1,store2,store3"], {(1, 2), (1, 3), (2, 3)}),
        (["store1", "store2,store3"], {(1, 2), (1, 3)}),
        (["store1,store2", "store3,store4"], {(1, 3), (1, 4), (2, 3), (2, 4)}),
        (["store1", "store2", "store3"], {(1, 2), (1, 3), (2, 3)}),
    ],
)
def test_sides(cluster: DevCluster, sides: list[str], pairs: set[tuple[int, int]]) -> None:
    found = devnetwork.parse_sides(cluster, tuple(sides))
    assert {tuple(sorted(int(name[-1]) for name in pair)) for pair in found} == pairs


@pytest.mark.parametrize(
    ("sides", "text"),
    [
        (["store9"], "no store 'store9'. There are: store1, store2, store3, store4"),
        (["router1"], "no store 'router1'"),
        (["store1", "store1,store2"], "named twice"),
        (["store1,store1"], "named twice"),
        ([","], "at least one"),
    ],
)
def test_senseless_sides(cluster: DevCluster, sides: list[str], text: str) -> None:
    with pytest.raises(Failure, match=text) as failed:
        devnetwork.parse_sides(cluster, tuple(sides))
    assert failed.value.exit_code == Exit.USAGE


def test_both_ends_of_a_cut_keep_from_all_sockets_of_the_other(cluster: DevCluster) -> None:
    devnetwork.cut(cluster, {("store1", "store3")})
    files = [store.cuts_file.read_text().split() for store in cluster.stores]
    assert files == [
        [f"tcp://127.0.0.1:{port}" for port in (7220, 7221, 7222)],
        [],
        [f"tcp://127.0.0.1:{port}" for port in (7200, 7201, 7202)],
        [],
    ]
    assert devnetwork.pairs_cut(cluster) == [("store1", "store3")]
    devnetwork.cut(cluster, set())
    assert devnetwork.pairs_cut(cluster) == []


def test_a_store_that_does_not_do_as_it_is_told_is_named(
    cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def runs(member: Member) -> bool:
        return member.name == "store2"

    monkeypatch.setattr(devrun, "is_running", runs)
    monkeypatch.setattr(devnetwork, "TAKEN_SECONDS", 0.0)
    with pytest.raises(Failure, match="store2 has not taken it"):
        devnetwork.cut(cluster, {("store1", "store2")})
    (cluster.directory / "run" / "store2.cuts.taken").write_text(cluster.stores[1].cuts_file.read_text())
    devnetwork.cut(cluster, {("store1", "store2")})


def test_the_commands(cluster: DevCluster, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--dir", str(cluster.directory)]
    assert run(["dev", "partition", "store1,store2", *where]) == Exit.OK
    said = capsys.readouterr().err
    assert said.startswith("cut: store1 | store2. Mend it:  kvcli dev heal --dir")
    assert run(["dev", "status", *where]) == Exit.DEGRADED
    assert "the network is cut: store1 | store2" in capsys.readouterr().err
    assert run(["dev", "heal", *where]) == Exit.OK
    assert run(["dev", "heal", *where]) == Exit.OK
    assert capsys.readouterr().err.splitlines() == ["the network is whole again", "the network was whole"]
    assert run(["dev", "partition", "store7", *where]) == Exit.USAGE
