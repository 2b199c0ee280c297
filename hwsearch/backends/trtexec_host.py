"""Where ``trtexec`` runs: this machine, or one reached by ``ssh``. Commands, and files there and back."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hwsearch.errors import BackendUnavailableError, EvaluationError

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
_SSH_FAILED = 255
_MESSAGE_LINES = 3


class Host:
    """A machine with a shell. `name` is what ``ssh`` takes, or None for this machine."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name or "this machine"

    def run(self, command: Sequence[str], *, stage: str, timeout_s: float | None = None) -> str:
        """What the command prints.

        Raises:
            BackendUnavailableError: the machine cannot be reached, or has no such program.
            EvaluationError: the command failed; with its own last words.
        """
        try:
            done = self._start(command, timeout_s=timeout_s)
        except FileNotFoundError as error:
            raise BackendUnavailableError(f"{error.filename} is not on the PATH of this machine") from error
        except subprocess.TimeoutExpired as error:
            raise EvaluationError(
                f"{command[0]} gave no answer within {timeout_s:g} s", stage=stage, kind="timeout"
            ) from error
        printed = done.stdout.decode(errors="replace")
        if self.name and done.returncode == _SSH_FAILED:
            said = done.stderr.decode(errors="replace").strip()
            raise BackendUnavailableError(
                f"{self.name} cannot be reached by ssh: {said}", hint=f"try: ssh {self.name} true"
            )
        if done.returncode != 0:
            said = printed + done.stderr.decode(errors="replace")
            raise EvaluationError(f"{command[0]} on {self}: {last_words(said)}", stage=stage, kind="tensorrt", log=said)
        return printed

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """A new folder there, removed afterwards."""
        if self.name is None:
            with tempfile.TemporaryDirectory(prefix="hwsearch-") as path:
                yield path
            return
        path = self.run(["mktemp", "-d"], stage="worker").strip()
        try:
            yield path
        finally:
            with contextlib.suppress(BackendUnavailableError, EvaluationError):
                self.run(["rm", "-r", path], stage="worker")

    def put(self, data: bytes, there: str) -> None:
        """Write a file there."""
        if self.name is None:
            Path(there).write_bytes(data)
        else:
            self._pipe(f"cat > {shlex.quote(there)}", data)

    def get(self, there: str) -> bytes:
        """Read a file from there."""
        return Path(there).read_bytes() if self.name is None else self._pipe(f"cat {shlex.quote(there)}", b"")

    def _start(self, command: Sequence[str], *, timeout_s: float | None) -> subprocess.CompletedProcess[bytes]:
        words = command if self.name is None else [*_SSH, self.name, shlex.join(command)]
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout_s)

    def _pipe(self, shell: str, data: bytes) -> bytes:
        assert self.name is not None
        done = subprocess.run([*_SSH, self.name, shell], input=data, capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise EvaluationError(f"cannot copy a file to or from {self}: {said}", stage="worker", kind="ssh")
        return done.stdout


def last_words(text: str) -> str:
    """The first errors trtexec tagged as such, else the last line."""
    errors = [line.partition("[E]")[2].strip() for line in text.splitlines() if "[E]" in line]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(errors[:_MESSAGE_LINES]) or (lines[-1] if lines else "no message")
