"""A TCP link that tests cut and mend: what a router, a cable or a firewall does, without their privileges."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


def free_endpoint() -> str:
    """Outside the range that the kernel gives out: a peer that connects again cannot meet itself there."""
    for port in range(20_000 + time.time_ns() % 10_000, 32_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return f"tcp://127.0.0.1:{port}"
    raise AssertionError("no free port")


class CuttableLink:
    """Passes bytes between whoever connects to `endpoint` and `target`, both "tcp://127.0.0.1:port"."""

    def __init__(self, target: str) -> None:
        self._target = ("127.0.0.1", int(target.rsplit(":", 1)[1]))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self.limit_bytes: int | None = None
        self._cut = threading.Event()
        self.passed_bytes = 0
        self._up = True
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Reset all connections, and every new one, until `mend`."""
        with self._lock:
            self._up = False
            self._cut.set()
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def hold_after(self, count: int) -> None:
        """Let that many more bytes of answers pass, and no others until it is cut and mended."""
        self.passed_bytes, self.limit_bytes = 0, count
        self._cut.clear()

    def mend(self) -> None:
        """Let new connections pass."""
        self.limit_bytes = None
        self._up = True

    def close(self) -> None:
        """End all of it."""
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            with self._lock:
                if self._up:
                    self._open += [near, far]
                    self.connections += 1
            if not self._up:
                near.close()
                far.close()
                continue
            for source, target, counted in ((near, far, False), (far, near, True)):
                thread = threading.Thread(target=self._pass, args=(source, target, counted), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                if counted:
                    self.passed_bytes += len(content)
                    if self.limit_bytes is not None and self.passed_bytes > self.limit_bytes:
                        self._cut.wait()
                        break
                target.sendall(content)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()
