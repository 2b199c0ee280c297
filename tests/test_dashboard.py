"""The live dashboard: what it reads and how often, and what it serves."""

import os
import re
import time

import pytest
from dashboard_support import folder, paths
from tiny_search import search_tiny

from hwsearch.cli.dashboard import exporter
from hwsearch.cli.main import main
from hwsearch.errors import ConfigError

dash = pytest.importorskip("dash", reason="dash is not installed")
from werkzeug.serving import make_server  # noqa: E402
from werkzeug.test import Client  # noqa: E402

from hwsearch.report.app import make_app  # noqa: E402
from hwsearch.report.watch import Board, Watched  # noqa: E402

__all__ = ["folder"]  # a fixture

# --------------------------------------------------------------------------- reading


def test_a_board_shows_runs_and_studies_in_the_order_given(folder):
    found = Board([*paths(folder)[::-1], *paths(folder)]).runs()
    assert [run.path.parent.name for run in found] == ["second", "first"]


def test_a_target_that_appears_later_is_taken_up(folder, tmp_path):
    board = Board([tmp_path / "late"])
    assert board.runs() == []
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "fake").symlink_to(paths(folder)[0])
    assert [run.path.name for run in board.runs()] == ["fake"]
    assert board.runs()[0] is board.runs()[0]


def test_a_run_is_read_again_only_when_it_changed(tmp_path):
    watched = Watched(search_tiny(tmp_path, evaluations=3).path)
    first = watched.facts()
    assert watched.facts() is first
    search_tiny(tmp_path, evaluations=4)
    watched._next_look = 0.0
    again = watched.facts()
    assert len(again.run.trials) == 4
    assert again.run.trials[0] is first.run.trials[0]  # parsed once
    assert watched.version == 2


def test_reading_a_run_that_grows_takes_a_small_share_of_a_core(tmp_path):
    run = search_tiny(tmp_path, evaluations=3)
    watched = Watched(run.path)
    watched.facts()
    ahead = watched._next_look - time.monotonic()
    assert ahead > 0
    os.utime(run.path / "study.db")
    watched.facts()
    assert watched.version == 1


# --------------------------------------------------------------------------- serving


@pytest.fixture(scope="module")
def app(folder):
    return make_app(Board(paths(folder)), exporter(folder / "out"), refresh_s=1)


def test_pages_that_pretend_to_be_this_machine_are_kept_out(app):
    client = app.server.test_client()
    for host, status in {"localhost:8050": 200, "127.0.0.1": 200, "[::1]:8050": 200, "evil.example:8050": 403}.items():
        assert client.get("/", headers={"Host": host}).status_code == status


def test_the_page_loads_from_here_and_looks_for_no_newer_version(app):
    text = app.server.test_client().get("/", headers={"Host": "127.0.0.1:1"}).text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources
    assert all(source.startswith("/") for source in sources)
    assert '"disable_version_check":true' in text


def test_the_full_report_is_a_click_away(app):
    client = app.server.test_client()
    assert "first on fake" in client.get("/report/0", headers={"Host": "127.0.0.1:1"}).text
    assert client.get("/report/9", headers={"Host": "127.0.0.1:1"}).status_code == 404


def test_a_folder_without_runs_is_an_error(tmp_path, capsys):
    assert main(["dashboard", str(tmp_path)]) == ConfigError.exit_code
    assert "no run in" in capsys.readouterr().err


def test_a_port_in_use_is_an_error(folder, capsys):
    with make_server("127.0.0.1", 0, lambda *_: []) as taken:
        assert main(["dashboard", str(paths(folder)[0]), "--port", str(taken.port)]) == ConfigError.exit_code
    assert "cannot listen on" in capsys.readouterr().err


def test_optunas_own_dashboard_opens_the_same_storage(folder):
    optuna_dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    client = Client(optuna_dashboard.wsgi(f"sqlite:///{paths(folder)[0] / 'study.db'}"))
    (found,) = client.get("/api/studies").json["study_summaries"]
    assert found["study_name"] == "first/fake"
    assert len(client.get(f"/api/studies/{found['study_id']}").json["trials"]) == 4
