"""Calling libraries that warn, log and nest their errors."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


def root_cause(error: BaseException) -> str:
    """Type and first line of the exception at the bottom of a chain."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return one_line(error)


def one_line(error: BaseException) -> str:
    """Type and first line of an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, log lines and prints of exporters and tracers; what matters of them is in their exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
