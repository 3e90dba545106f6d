"""The table of errors: total, consistent, and each class the builtin it is a case of."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest

from kvclient import errors
from kvclient.errors import BY_STATUS, Exit, KVError, Status, from_status

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, KVError)]
PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"


def test_every_status_but_ok_has_its_class() -> None:
    assert set(BY_STATUS) == set(Status) - {Status.OK}
    assert len(set(BY_STATUS.values())) == len(BY_STATUS)


@pytest.mark.parametrize("status", BY_STATUS, ids=lambda status: status.name)
def test_class_and_status_lead_to_each_other(status: Status) -> None:
    error = from_status(status, "why", limit=3, retry_after_ms=7)
    assert type(error) is BY_STATUS[status]
    assert error.status is status
    assert (str(error), error.message, error.limit, error.retry_after_ms) == ("why", "why", 3, 7)
    assert (error.size, error.node, error.index, error.hint) == (None, None, None, None)
    assert isinstance(error.exit_code, Exit)
    assert error.exit_code is not Exit.OK


def test_statuses_are_those_of_the_protocol_page() -> None:
    section = PAGE.read_text().split("## 4. Status codes")[1].split("## 5.")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in section.splitlines()
        if line.startswith("| ")
    ]
    assert {(int(row[0]), row[1]) for row in rows[1:]} == {(status.value, status.name) for status in Status}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_is_documented_and_sound(cls: type[KVError]) -> None:
    assert cls.__doc__
    assert isinstance(cls.status, Status)
    assert isinstance(cls.exit_code, Exit)
    assert isinstance(cls.retryable, bool)
    assert not (cls.retryable and cls.maybe_applied), "what may have been applied is not simply tried again"


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("KeyNotFound", 3),
        ("Conflict", 4),
        ("NotAnInteger", 4),
        ("InvalidRequest", 2),
        ("KeyTooLong", 2),
        ("ValueTooLarge", 2),
        ("RequestTooLarge", 2),
        ("TooManyOps", 2),
        ("Unsupported", 2),
        ("ConnectError", 5),
        ("KVTimeout", 6),
        ("OutcomeUnknown", 7),
        ("Unavailable", 8),
        ("Busy", 8),
        ("ReadOnly", 8),
        ("Compacted", 9),
        ("BatchError", 10),
        ("PermissionDenied", 12),
        ("VersionMismatch", 13),
        ("Corruption", 1),
        ("InternalError", 1),
        ("ProtocolError", 1),
    ],
)
def test_exit_codes(name: str, exit_code: int) -> None:
    assert getattr(errors, name).exit_code == exit_code


@pytest.mark.parametrize(
    ("builtin", "names"),
    [
        (KeyError, {"KeyNotFound"}),
        (
            ValueError,
            {
                "NotAnInteger",
                "InvalidRequest",
                "KeyTooLong",
                "ValueTooLarge",
                "RequestTooLarge",
                "TooManyOps",
                "Unsupported",
                "CodecError",
            },
        ),
        (TimeoutError, {"KVTimeout", "OutcomeUnknown"}),
        (ConnectionError, {"ConnectError", "ClosedError", "ForkedError"}),
        (PermissionError, {"PermissionDenied"}),
    ],
)
def test_builtins_that_may_be_caught_instead(builtin: type[Exception], names: set[str]) -> None:
    assert {cls.__name__ for cls in CLASSES if issubclass(cls, builtin)} == names


def test_which_errors_may_have_been_applied_and_which_may_be_tried_again() -> None:
    assert {cls.__name__ for cls in CLASSES if cls.maybe_applied} == {"OutcomeUnknown"}
    retryable = {"Unavailable", "Busy", "NotLeader", "WrongReplica", "ConnectError", "KVTimeout"}
    assert {cls.__name__ for cls in CLASSES if cls.retryable} == retryable


@pytest.mark.parametrize("status", [0, 4, 99, -1, 1 << 70])
def test_unknown_statuses_become_internal_errors_that_name_them(status: int) -> None:
    error = from_status(status, "why", node="store1")
    assert type(error) is errors.InternalError
    assert error.message == f"unknown status {status}: why"
    assert error.node == "store1"


def test_details_have_names() -> None:
    assert errors.Conflict("no", current_version=9).current_version == 9
    assert errors.Conflict("no").current_version == 0
    attempts = [("tcp://a:1", "refused")]
    assert errors.ConnectError("no", attempts=attempts).attempts == attempts
    assert errors.ConnectError("no").attempts == []
    failed = [(3, errors.Busy("later"))]
    assert errors.BatchError("some", errors=failed).errors == failed
    assert KVError("no", hint="do this").hint == "do this"


def test_a_key_error_prints_its_message_plainly() -> None:
    assert str(errors.KeyNotFound("no key 'a'")) == "no key 'a'"


def test_protocol_errors_carry_what_to_answer() -> None:
    error = errors.ProtocolError("bad", request_id=7)
    assert (error.code, error.request_id) == (Status.INVALID_REQUEST, 7)
    mismatch = errors.VersionMismatch("other")
    assert (mismatch.code, mismatch.status) == (Status.VERSION_MISMATCH, Status.VERSION_MISMATCH)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_errors_survive_the_way_to_another_process(cls: type[KVError]) -> None:
    """copy uses the same __reduce_ex__ by which multiprocessing and concurrent.futures carry exceptions."""
    error = cls("why", limit=3)
    twin = copy.copy(error)
    assert type(twin) is cls
    assert (twin.message, twin.limit, str(twin)) == ("why", 3, "why")
