"""Everything hwsearch raises on purpose.

    HwSearchError                 any problem we can explain; the CLI prints it without a traceback
    ├── ConfigError               a study file, option or argument is wrong             exit code 2
    │   ├── ModelError            the network cannot be loaded, traced or exported       exit code 2
    │   ├── DataError             the data are missing, malformed, empty or overlapping  exit code 2
    │   └── BundleError           a bundle is damaged or not a bundle                    exit code 2
    ├── BackendUnavailableError   the runtime or the device is not here                  exit code 3
    ├── EvaluationError           one candidate failed; becomes a `Failure`, never the end of a search
    ├── TrainingStoppedError      training was asked to stop; its state is on disk
    └── SearchFailedError         every evaluation failed                                exit code 4

Each error says what is wrong, where, what was found, what is allowed and what to do::

    error: unknown sampler `nsga3`
      study.yaml:12  search.sampler = nsga3
      allowed: gp, nsga2, random, tpe

    hint: did you mean `nsga2`?
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HwSearchError(Exception):
    """A problem hwsearch can explain.

    Example:
        >>> try:
        ...     study = hs.load_study("nowhere.yaml")
        ... except hs.HwSearchError as error:
        ...     print(error.exit_code)
        2

    Args:
        message: One line: what is wrong.
        where: File and line, or the option, that caused it, with the value found.
        allowed: The values or the form that would have been accepted.
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, where: str | None = None, allowed: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.allowed = allowed
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.message]
        if self.where:
            lines.append(f"  {self.where}")
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.hint:
            lines.append(f"\nhint: {self.hint}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, str | int | None]:
        """The same facts as a JSON-ready dictionary, for ``--json``."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "where": self.where,
            "allowed": self.allowed,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class ConfigError(HwSearchError):
    """A study file, a command-line option or an argument is wrong."""

    exit_code = 2


class ModelError(ConfigError):
    """The network cannot be found, loaded, traced or exported."""


class DataError(ConfigError):
    """The data are missing, malformed, empty, mislabelled or overlapping."""


class BundleError(ConfigError):
    """An exported bundle is damaged, incomplete or not a bundle."""


class BackendUnavailableError(HwSearchError):
    """The runtime or the device a target needs is not on this machine."""

    exit_code = 3


class EvaluationError(HwSearchError):
    """One candidate could not be evaluated; recorded as a failure.

    Args:
        message: One line: what went wrong.
        stage: Where: ``compress``, ``observe``, ``lower``, ``build``, ``accuracy``, ``latency`` or ``worker``.
        kind: ``crash``, ``timeout``, ``memory``, ``invalid`` or the name of the exception.
        log: The last lines of the worker's own output.
    """

    def __init__(self, message: str, *, stage: str, kind: str, hint: str | None = None, log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.stage = stage
        self.kind = kind
        self.log = log


class TrainingStoppedError(HwSearchError):
    """Training was asked to stop before its end; it goes on from its checkpoint."""


class SearchFailedError(HwSearchError):
    """No evaluation of a search succeeded."""

    exit_code = 4


def did_you_mean(found: str, allowed: Iterable[str]) -> str | None:
    """A hint naming the allowed value closest to ``found``, or None when nothing is close."""
    close = difflib.get_close_matches(found, list(allowed), n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else None
