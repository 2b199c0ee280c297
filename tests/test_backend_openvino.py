import pytest

from hwsearch.testing import BackendContract


class TestOpenVinoBackend(BackendContract):
    @pytest.fixture
    def backend(self):
        from hwsearch.backends.openvino import OpenVinoBackend

        return OpenVinoBackend()
