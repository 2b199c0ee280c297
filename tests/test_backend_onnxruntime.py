import pytest

from hwsearch.testing import BackendContract


class TestOnnxRuntimeBackend(BackendContract):
    @pytest.fixture
    def backend(self):
        from hwsearch.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend()
