"""The pull without sockets: what it asks, when, and what it does with answers that do not fit."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from kvclient.errors import Status
from storenode.bulkprotocol import (
    Answer,
    Chunk,
    Closed,
    FileMeta,
    Open,
    Opened,
    Read,
    Refusal,
    Request,
    decode_request,
)
from storenode.engine import codec
from storenode.engine.vfs import File, Vfs
from storenode.snapshotpull import (
    ANSWER_S,
    DAMAGED_MAX,
    GIVE_UP_S,
    PAUSE_S,
    PAUSE_S_MAX,
    REFUSED_S,
    WINDOW,
    Done,
    Failed,
    Pull,
)
from tests.unit.storenode.bulkworld import MIB, files_below

FILES = {"a.sst": os.urandom(5 * MIB + 1), "b.sst": b"", "m/data.mdb": os.urandom(3 * MIB)}
SNAPSHOT = 77


class Talk:
    """A pull and a source that says what the test wants. Time stands still until it is moved."""

    def __init__(self, root: Path, *, vfs: Vfs | None = None) -> None:
        self.now = 100.0
        self.target = str(root / "target")
        self.pull = Pull(7, 5, 2, self.target, vfs or Vfs(), random.Random(3), self.now)

    def asked(self) -> list[Request]:
        return [decode_request(body) for body in self.pull.requests(self.now)]

    def say(self, answer: Answer) -> None:
        self.pull.on_answer(answer, self.now)

    def answer(self, request: Request, *, snapshot: int = SNAPSHOT) -> None:
        if isinstance(request, Open):
            files = [FileMeta(n, len(c), codec.masked_crc32c(c)) for n, c in FILES.items()]
            self.say(Opened(request.token, snapshot, b"state", tuple(files)))
        elif isinstance(request, Read):
            data = FILES[request.name][request.offset : request.offset + request.length]
            self.say(Chunk(request.token, data, codec.masked_crc32c(data)))

    def open(self) -> list[Request]:
        """Answers the open; what is asked next."""
        (request,) = self.asked()
        assert isinstance(request, Open)
        self.answer(request)
        return self.asked()

    def wait(self) -> float:
        """Moves to when it is due; how long that was."""
        before, self.now = self.now, self.pull.next_due()
        return self.now - before

    def run(self) -> None:
        while self.pull.outcome is None:
            asked = self.asked()
            for request in asked:
                self.answer(request)
            if not asked:
                self.wait()


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return Talk(tmp_path)


def test_chunks_are_asked_for_in_order_and_only_a_window_ahead(talk: Talk) -> None:
    (request,) = talk.asked()
    assert (request[1:]) == (7, 5, 2)
    assert talk.asked() == [], "an open that waits for its answer is not repeated"
    talk.answer(request)
    flying = talk.asked()
    reads = []
    while talk.pull.outcome is None:
        assert len(flying) == min(WINDOW, 9 - len(reads))
        reads.append(flying[0][2:])
        talk.answer(flying.pop(0))
        flying += talk.asked()
    assert reads == [
        *[("a.sst", number * MIB, MIB) for number in range(5)],
        ("a.sst", 5 * MIB, 1),
        *[("m/data.mdb", number * MIB, MIB) for number in range(3)],
    ]
    assert talk.pull.outcome == Done(talk.target, b"state")
    assert files_below(talk.target) == FILES
    assert talk.pull.goodbye() is not None


def test_silence_ends_the_wait_for_all_that_was_asked_and_it_goes_on_where_it_was(talk: Talk) -> None:
    flying = talk.open()
    talk.now += ANSWER_S - 1
    talk.answer(flying[0])
    flying += talk.asked()
    talk.now += ANSWER_S - 1
    assert talk.asked() == [], "an answer came meanwhile"
    talk.now += 1
    assert talk.asked() == []
    assert 0 < talk.wait() <= PAUSE_S
    for late in flying[1:]:
        assert not talk.pull.expects(late.token)
        talk.answer(late)
    assert [request[2:] for request in talk.open()][:1] == [("a.sst", MIB, MIB)]
    talk.run()
    assert files_below(talk.target) == FILES
    assert talk.pull.bytes_pulled == sum(map(len, FILES.values()))


def test_pauses_grow_with_jitter_and_begin_small_again_after_an_answer(talk: Talk) -> None:
    pauses = []
    for _ in range(9):
        assert len(talk.asked()) == 1
        talk.pull.on_unsent(talk.now)
        pauses.append(talk.wait())
    for number, pause in enumerate(pauses):
        longest = min(PAUSE_S_MAX, PAUSE_S * 2**number)
        assert longest / 2 <= pause <= longest
    assert len({pause / PAUSE_S_MAX for pause in pauses[-4:]}) == 4, "drawn each time"
    talk.open()
    talk.pull.on_unsent(talk.now)
    assert talk.wait() <= PAUSE_S


def test_busy_is_waited_for_as_long_as_the_source_says_and_never_given_up(talk: Talk) -> None:
    for _ in range(200):
        (request,) = talk.asked()
        talk.say(Refusal(request.token, Status.BUSY, "others", 1000))
        assert 0.5 <= talk.wait() <= 1
    assert talk.pull.outcome is None


def test_a_source_that_is_silent_for_too_long_is_given_up(talk: Talk) -> None:
    begin = talk.now
    while talk.asked() or talk.pull.outcome is None:
        talk.wait()
        assert talk.now - begin <= GIVE_UP_S
    assert talk.now - begin == GIVE_UP_S
    assert isinstance(talk.pull.outcome, Failed)
    assert talk.asked() == []


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.NOT_FOUND])
def test_a_source_that_has_the_replica_no_more_is_given_up(talk: Talk, status: Status) -> None:
    """It was asked for ever, since it answered: nobody pulled from who led the group by then."""
    begin = talk.now
    while talk.pull.outcome is None:
        for request in talk.asked():
            talk.say(Refusal(request.token, status, "no replica here"))
        talk.wait()
        assert talk.now - begin <= REFUSED_S + 2 * PAUSE_S_MAX
    assert talk.now - begin >= REFUSED_S
    assert isinstance(talk.pull.outcome, Failed)
    assert "no replica here" in talk.pull.outcome.reason


def test_refusals_between_which_it_goes_on_do_not_add_up(talk: Talk) -> None:
    for _ in range(30):
        flying = talk.open()
        talk.say(Refusal(flying[0].token, Status.NOT_FOUND, "gone"))
        talk.wait()
    assert talk.pull.outcome is None


@pytest.mark.parametrize("status", [Status.WRONG_REPLICA, Status.INVALID_REQUEST, Status.INTERNAL])
def test_a_refusal_for_good_ends_the_pull_with_its_words(talk: Talk, status: Status) -> None:
    (request,) = talk.asked()
    talk.say(Refusal(request.token, status, "not here"))
    assert isinstance(talk.pull.outcome, Failed)
    assert "not here" in talk.pull.outcome.reason


def test_a_snapshot_that_was_removed_is_opened_again(talk: Talk) -> None:
    flying = talk.open()
    talk.answer(flying[0])
    talk.say(Refusal(flying[1].token, Status.NOT_FOUND, "gone"))
    talk.wait()
    (request,) = talk.asked()
    talk.answer(request, snapshot=SNAPSHOT + 1)
    assert talk.asked()[0][2:] == ("a.sst", 0, MIB), "nothing of the other one is used"
    talk.pull.on_unsent(talk.now)
    talk.run()
    assert files_below(talk.target) == FILES


def test_answers_out_of_order_never_leave_a_hole(talk: Talk) -> None:
    flying = talk.open()
    talk.answer(flying[1])
    talk.run()
    assert files_below(talk.target) == FILES
    assert talk.pull.bytes_pulled == sum(map(len, FILES.values())), "what came too early was taken"


@pytest.mark.parametrize("what", ["closed", "short", "long", "opened"])
def test_answers_that_do_not_fit_are_borne_a_few_times(talk: Talk, what: str) -> None:
    for _ in range(DAMAGED_MAX):
        assert talk.pull.outcome is None
        request = talk.open()[0]
        data = FILES["a.sst"][: MIB - 1 if what == "short" else MIB + 1]
        answers: dict[str, Answer] = {
            "closed": Closed(request.token),
            "short": Chunk(request.token, data, codec.masked_crc32c(data)),
            "long": Chunk(request.token, data, codec.masked_crc32c(data)),
            "opened": Opened(request.token, SNAPSHOT, b"", ()),
        }
        talk.say(answers[what])
        talk.wait()
    assert isinstance(talk.pull.outcome, Failed)
    assert "damaged" in talk.pull.outcome.reason
    assert not os.path.exists(talk.target)


@pytest.mark.parametrize("damage", ["torn", "empty", "gone", "flipped"])
def test_what_has_no_sound_journal_is_not_used(tmp_path: Path, damage: str) -> None:
    first = Talk(tmp_path)
    for request in first.open():
        first.answer(request)
    first.pull.close()
    journal = Path(first.target + ".incoming", ".journal")
    content = bytearray(journal.read_bytes())
    content[6] ^= damage == "flipped"
    journal.write_bytes(content[: {"torn": len(content) - 3, "empty": 0}.get(damage, len(content))])
    if damage == "gone":
        journal.unlink()
    second = Talk(tmp_path)
    assert second.open()[0][2:] == ("a.sst", 0, MIB)
    second.pull.on_unsent(second.now)
    second.run()
    assert files_below(second.target) == FILES


def test_a_sound_journal_lets_the_next_pull_go_on_in_the_middle_of_a_file(tmp_path: Path) -> None:
    first = Talk(tmp_path)
    for request in first.open():
        first.answer(request)
    first.pull.close()
    second = Talk(tmp_path)
    assert second.open()[0][2:] == ("a.sst", WINDOW * MIB, MIB)


class Recording(Vfs):
    """What was made durable, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def create(self, path: str) -> File:
        return RecordingFile(self, super().create(path))

    def rename(self, source: str, target: str) -> None:
        super().rename(source, target)
        self.done.append(f"rename {os.path.basename(source)} {os.path.basename(target)}")

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self.done.append(f"sync {os.path.basename(os.path.normpath(path))}/")


class RecordingFile(File):
    def __init__(self, vfs: Recording, made: File) -> None:
        super().__init__(made.path, made.fd)
        self._vfs = vfs

    def sync(self) -> None:
        super().sync()
        self._vfs.done.append(f"sync {os.path.basename(self.path)}")


def test_files_are_durable_before_they_have_their_names_and_all_before_the_snapshot_has(
    tmp_path: Path,
) -> None:
    vfs = Recording()
    Talk(tmp_path, vfs=vfs).run()
    begin = vfs.done.index("sync .journal")
    assert vfs.done[begin:] == [
        "sync .journal",
        "sync target.incoming/",
        "sync .a.sst",
        "rename .a.sst a.sst",
        "sync .b.sst",
        "rename .b.sst b.sst",
        "sync .data.mdb",
        "rename .data.mdb data.mdb",
        "sync target.incoming/",
        "sync m/",
        "sync target.incoming/",
        "rename target.incoming target",
        f"sync {tmp_path.name}/",
    ]
