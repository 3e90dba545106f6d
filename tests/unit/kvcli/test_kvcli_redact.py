"""What leaves the house: no secrets, no keys and values of users."""

from __future__ import annotations

import json

import pytest

from kvclient.cli import redact
from kvclient.cli.redact import REDACTED

CURVE = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("secret_key: abc", f"secret_key: {REDACTED}"),
        (
            "security: {password: abc, keys: /etc/keys}",
            f"security: {{password: {REDACTED}, keys: /etc/keys}}",
        ),
        ('{"api_token": "a b c", "n": 1}', f'{{"api_token": {REDACTED}, "n": 1}}'),
        ("RINGKV_TOKEN=abc next", f"RINGKV_TOKEN={REDACTED} next"),
        ("KeyError: b'ann' and b\"it's\"", f"KeyError: {REDACTED} and {REDACTED}"),
        (r'{"exception":"KeyError: b\"it\u0027s\" in"}', f'{{"exception":"KeyError: {REDACTED} in"}}'),
        (f"curve: {CURVE}", f"curve: {REDACTED}"),
        (f'public = "{CURVE}"', f'public = "{REDACTED}"'),
        ("rpc: tcp://127.0.0.1:7200", "rpc: tcp://127.0.0.1:7200"),
        (
            "/home/someone/data/store1/partitions/0003/000012.sst",
            "/home/someone/data/store1/partitions/0003/000012.sst",
        ),
        ("incarnation 0123456789abcdef0123456789abcdef", "incarnation 0123456789abcdef0123456789abcdef"),
    ],
)
def test_secrets_and_bytes_go_and_the_rest_stays(given: str, expected: str) -> None:
    assert redact.text(given) == expected


def test_data_is_redacted_by_name_and_by_text() -> None:
    given = {"password": {"a": 1}, "list": [b"user", "token: abc"], "n": 1.5, "ok": True, "none": None}
    told = redact.data(given)
    assert told == {
        "password": REDACTED,
        "list": [REDACTED, f"token: {REDACTED}"],
        "n": 1.5,
        "ok": True,
        "none": None,
    }
    json.dumps(told)
