"""For tests, yours and ours: backends that need no runtime or misbehave, and the contract every backend must meet.

    class TestMyBackend(hwsearch.testing.BackendContract):
        @pytest.fixture
        def backend(self):
            return MyBackend()

The fakes work in child processes too, by name: ``backend: hwsearch.testing:FakeBackend`` in a target file.
"""

from typing import Any

from hwsearch.testing.fakes import CrashingBackend, FailingBackend, FakeBackend, MemoryHogBackend, SlowBackend

__all__ = [
    "BackendContract",
    "CrashingBackend",
    "FailingBackend",
    "FakeBackend",
    "MemoryHogBackend",
    "SlowBackend",
]


def __getattr__(name: str) -> Any:
    """`BackendContract`, imported when asked for: it needs pytest, and the fakes do not."""
    if name == "BackendContract":
        from hwsearch.testing.contract import BackendContract

        return BackendContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
