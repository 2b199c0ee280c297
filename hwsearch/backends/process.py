"""A child process that answers one line of JSON with one line of JSON, and that can crash, hang or run out of memory
without harm to its parent.

The child lives in a session of its own: Ctrl-C does not reach it, and killing it kills all it has started. The parent
waits in `poll`, asleep, so that it takes no time from what the child measures.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

_READ_BYTES = 1 << 20


class NoAnswerError(Exception):
    """The child is still running and has not answered in time."""


class ExitedError(Exception):
    """The child ended instead of answering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a child ended: its exit code (minus the signal that killed it) and the most memory it held."""

    code: int
    peak_bytes: int

    def __str__(self) -> str:
        if self.code >= 0:
            return f"exited with code {self.code}"
        return f"was killed by {signal.Signals(-self.code).name}"


class LineProcess:
    """One running child. `ask` and `kill` are all there is to it; after `ExitedError`, call `kill` for the facts."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=dict(environment),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Process id; also the id of its process group and session."""
        return self._process.pid

    def ask(self, request: Any, timeout_s: float) -> Any:
        """The child's answer to `request`.

        Raises:
            NoAnswerError: none came within `timeout_s` seconds.
            ExitedError: the child is gone.
        """
        deadline = time.monotonic() + timeout_s
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise ExitedError from None
        return json.loads(self._read_line(deadline))

    def _read_line(self, deadline: float) -> bytearray:
        stdout = self._process.stdout
        assert stdout is not None
        waiting = select.poll()
        waiting.register(stdout, select.POLLIN)
        line = bytearray()
        while not line.endswith(b"\n"):
            remaining_ms = (deadline - time.monotonic()) * 1000
            if remaining_ms <= 0 or not waiting.poll(remaining_ms):
                raise NoAnswerError
            data = os.read(stdout.fileno(), _READ_BYTES)
            if not data:
                raise ExitedError
            line += data
        return line

    def has_exited(self) -> bool:
        """Whether the child has ended (it is not yet reaped)."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def kill(self, *, exited: bool = False) -> Exit:
        """End the child with everything it has started, and say how it ended.

        Args:
            exited: It has closed its answers by itself: wait for its own exit code first.
        """
        if exited:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                stream.close()  # type: ignore[union-attr]  # both were opened above
        return Exit(code=self._process.returncode, peak_bytes=usage.ru_maxrss * 1024)
