"""Two finished searches for the tests of the dashboard."""

import pytest
from tiny_search import search_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs in one folder."""
    folder = tmp_path_factory.mktemp("dashboard")
    search_tiny(folder, name="first")
    search_tiny(folder, name="second", evaluations=5)
    return folder


def paths(folder):
    """A run folder, and the folder of a study: a dashboard takes both."""
    return [folder / "runs" / "first" / "fake", folder / "runs" / "second"]
