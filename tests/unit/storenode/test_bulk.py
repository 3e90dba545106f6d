"""Snapshots pulled over real sockets, from real files to real files, whatever happens on the way."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.config import ConfigError
from storenode import snapshotpull
from storenode.bulk import BulkClient
from storenode.bulkprotocol import Chunk, decode_answer, encode_answer
from storenode.engine.vfs import File, Vfs
from storenode.snapshotpull import Done, Failed
from tests.unit.storenode.bulkworld import MIB, World, files_below
from tests.unit.storenode.links import CuttableLink


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(snapshotpull, "ANSWER_S", 0.5)
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def link(world: World) -> Iterator[CuttableLink]:
    made = CuttableLink(world.endpoint)
    yield made
    made.close()


def test_a_snapshot_arrives_whole_and_the_source_keeps_nothing(world: World) -> None:
    source = world.start_source()
    world.pull()
    assert world.outcome() == Done(world.target(), b"the state")
    assert files_below(world.target()) == world.files
    world.until(lambda: not source.figures()["snapshots_served"], "close at the source")
    world.until(lambda: not os.listdir(world.root / "snapshots"), "removal")
    assert source.figures()["snapshot_bytes_sent"] == world.size
    assert not os.path.exists(world.target() + ".incoming")
    world.until(lambda: not world.linked(), "end of the link")
    assert world.told == 1


def test_a_snapshot_without_files_is_a_snapshot(world: World) -> None:
    world.start_source()
    world.files = {"manifest/data.mdb": b""}
    world.pull()
    assert isinstance(world.outcome(), Done)
    assert files_below(world.target()) == world.files


def test_a_pull_goes_on_where_it_was_when_its_link_broke(world: World, link: CuttableLink) -> None:
    source = world.start_source()
    kept = world.pull_until_broken(link, 4 * MIB)
    pull = world.client._jobs[7].pull
    link.mend()
    assert isinstance(world.outcome(), Done)
    assert files_below(world.target()) == world.files
    assert link.connections >= 2
    assert source.made == 1
    assert kept >= 2 * MIB
    assert pull.retries >= 1
    assert pull.bytes_pulled == world.size, "no part was taken twice"


def test_a_link_that_breaks_again_and_again_ends_in_the_same_files(world: World, link: CuttableLink) -> None:
    source = world.start_source()
    world.pull_until_broken(link, int(2.2 * MIB))
    for _ in range(2):
        link.mend()
        world.until_broken(link, int(2.2 * MIB))
    link.mend()
    assert isinstance(world.outcome(), Done)
    assert files_below(world.target()) == world.files
    assert source.made == 1


def test_a_pull_goes_on_after_a_restart_of_who_pulls(world: World, link: CuttableLink) -> None:
    source = world.start_source()
    world.pull_until_broken(link, 3 * MIB)
    assert world.client.close()
    kept = world.incoming_bytes()
    assert MIB <= kept < world.size
    world.new_client()
    world.pull()
    pull = world.client._jobs[7].pull
    assert isinstance(world.outcome(), Done)
    assert files_below(world.target()) == world.files
    assert pull.bytes_pulled == world.size - kept, "only what was missing is taken"
    assert source.made == 1


def test_two_snapshots_are_never_mixed(world: World, link: CuttableLink) -> None:
    world.start_source()
    world.pull_until_broken(link, 3 * MIB)
    world.files = {name: os.urandom(len(content)) for name, content in world.files.items()}
    del world.files["000008.sst"]
    world.state = b"a newer state"
    world.start_source()
    link.mend()
    assert world.outcome() == Done(world.target(), b"a newer state")
    assert files_below(world.target()) == world.files


def test_a_machine_that_lost_bytes_of_a_file_pulls_that_file_again(world: World, link: CuttableLink) -> None:
    source = world.start_source()
    world.pull_until_broken(link, 3 * MIB)
    assert world.client.close()
    partial = Path(world.target() + ".incoming", ".000007.sst")
    content = bytearray(partial.read_bytes())
    content[5000:9000] = bytes(4000)  # as a file system leaves them whose sizes outlive their contents
    partial.write_bytes(content)
    world.new_client()
    world.pull()
    assert isinstance(world.outcome(), Done)
    assert files_below(world.target()) == world.files
    assert source.bytes_sent > world.size + len(content) // 2


def spoil_chunks(world: World, times: int) -> list[int]:
    left = [times]

    def spoil(body: bytes) -> bytes:
        answer = decode_answer(body)
        if isinstance(answer, Chunk) and left[0]:
            left[0] -= 1
            return encode_answer(answer._replace(data=answer.data[:-1] + bytes([answer.data[-1] ^ 1])))
        return body

    world.spoil = spoil
    return left


def test_a_damaged_chunk_is_asked_for_again(world: World) -> None:
    world.start_source()
    left = spoil_chunks(world, 2)
    world.pull()
    pull = world.client._jobs[7].pull
    assert isinstance(world.outcome(), Done)
    assert left == [0]
    assert pull.bytes_pulled == world.size, "the damaged ones were not taken"
    assert files_below(world.target()) == world.files


def test_a_source_that_sends_nothing_sound_ends_the_pull(world: World) -> None:
    world.start_source()
    spoil_chunks(world, 1000)
    world.pull()
    outcome = world.outcome()
    assert isinstance(outcome, Failed)
    assert "damaged" in outcome.reason
    assert not os.path.exists(world.target())


def test_a_file_that_is_not_what_the_source_summed_never_gets_its_name(world: World) -> None:
    """The sums of the chunks hold: the file changed under the source."""
    world.start_source()

    def spoil(body: bytes) -> bytes:
        for path in (world.root / "snapshots").rglob("*.sst"):
            content = bytearray(path.read_bytes())
            if content:
                content[-1] ^= 1
                path.write_bytes(content)
        return body

    changed: list[bool] = []

    def once(body: bytes) -> bytes:
        if not isinstance(decode_answer(body), Chunk) and b"sst" in body and not changed:
            changed.append(True)
            spoil(body)
        return body

    world.spoil = once
    world.pull()
    outcome = world.outcome()
    assert isinstance(outcome, Failed)
    assert "000007.sst does not have its sum" in outcome.reason
    assert not os.path.exists(world.target())


def test_a_source_that_dies_ends_the_pull_and_what_came_is_kept(
    world: World, link: CuttableLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshotpull, "GIVE_UP_S", 0.8)
    world.start_source()
    world.pull_until_broken(link, 3 * MIB)
    outcome = world.outcome()
    assert isinstance(outcome, Failed)
    assert "has not answered" in outcome.reason
    kept = world.incoming_bytes()
    assert kept >= MIB
    world.outcomes.clear()
    world.pull()
    assert isinstance(world.outcome(), Done)
    assert files_below(world.target()) == world.files


def test_nobody_at_the_address_ends_the_pull(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshotpull, "GIVE_UP_S", 0.5)
    world.pull()  # the socket listens, nobody answers
    assert isinstance(world.outcome(), Failed)
    with pytest.raises(ConfigError):
        world.pull(endpoint="nonsense")


class FullFile(File):
    def write_at(self, offset: int, data: bytes) -> None:
        if offset + len(data) > 2 * MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        super().write_at(offset, data)


class FullDisk(Vfs):
    """Takes 2 MiB of each file."""

    def create(self, path: str) -> File:
        made = super().create(path)
        return FullFile(made.path, made.fd)


def test_a_full_disk_ends_the_pull_with_its_reason(world: World) -> None:
    world.start_source()
    assert world.client.close()
    world.new_client(FullDisk())
    world.pull()
    outcome = world.outcome()
    assert isinstance(outcome, Failed)
    assert "No space left on device" in outcome.reason
    assert not os.path.exists(world.target())
    world.until(lambda: not world.linked(), "end of the link")


def test_a_target_that_is_there_is_never_touched(world: World) -> None:
    world.start_source()
    os.mkdir(world.target())
    world.pull()
    outcome = world.outcome()
    assert isinstance(outcome, Failed)
    assert "new directory" in outcome.reason
    assert os.listdir(world.target()) == []


def test_more_pulls_than_the_source_serves_take_their_turns(world: World) -> None:
    source = world.start_source()
    world.files = {"000001.sst": os.urandom(MIB + 1)}
    for group in range(4):
        world.pull(group)
    world.until(lambda: len(world.outcomes) == 4, "outcomes")
    assert all(isinstance(outcome, Done) for outcome in world.outcomes.values())
    assert all(files_below(world.target(group)) == world.files for group in range(4))
    assert source.made == 4


def test_it_is_known_for_how_long_a_source_is_silent(world: World) -> None:
    assert world.client.silent_s(7) == 0.0
    world.pull()
    world.until(lambda: world.client.silent_s(7) > 0.2, "silence")
    world.start_source()
    assert isinstance(world.outcome(), Done)
    assert world.client.silent_s(7) == 0.0


def test_a_cancelled_pull_says_nothing_more_and_its_successor_uses_what_it_left(
    world: World, link: CuttableLink
) -> None:
    source = world.start_source()
    world.pull_until_broken(link, 3 * MIB)
    world.client.cancel(7)
    world.client.cancel(7)
    world.pull()
    assert isinstance(world.outcome(), Done)
    assert files_below(world.target()) == world.files
    assert world.told == 1
    assert source.bytes_sent <= world.size + 4 * MIB


def test_a_client_that_is_closed_in_the_middle_leaves_no_socket_behind(world: World) -> None:
    world.start_source()
    world.pull()
    world.until(lambda: world.incoming_bytes() > 0, "first bytes")
    client: BulkClient = world.client
    assert client.close()
    assert not client._links
    assert 7 not in world.outcomes
    world.new_client()
