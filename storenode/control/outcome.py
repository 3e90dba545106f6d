"""What a command comes to."""

from __future__ import annotations

from typing import Any

import attrs

from storenode.control.state import ControlState


@attrs.frozen
class Outcome:
    """`state`: to be written before the answer is given, None: nothing changes. `body`: the answer."""

    state: ControlState | None
    body: dict[str, Any]
