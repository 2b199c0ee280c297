import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
from synthetic_run import make_run, make_sensitivity, only_failures

from hwsearch.errors import ConfigError
from hwsearch.report.html import render, write_report


class Page(HTMLParser):
    """Collects elements, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._inside = True
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "script"

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture(scope="module")
def text(run):
    return render(run)


def test_the_page_asks_for_nothing_from_outside(text):
    for tag, attrs in Page(text).elements:
        assert tag not in {"iframe", "object", "embed"}
        for name in ("src", "href", "srcset", "data", "action"):
            assert not re.match(r"(https?:)?//", attrs.get(name) or "")
    assert "default-src 'none'" in text


def test_the_data_are_strict_json_and_complete(run, text):
    data = json.loads(Page(text).scripts[0])
    assert len(data["evaluations"]) == sum(t.outcome.kind == "success" for t in run.trials)
    assert data["layers"]["names"] == [layer.name for layer in run.source.layers]
    assert {row["key"]: row["number"] for row in data["evaluations"]}
    assert data["export"] == "hwsearch export 'runs/cifar10 resnet20/ort-cpu'"
    assert set(data["figures"]) == {attrs["data-chart"] for _, attrs in Page(text).elements if "data-chart" in attrs}


def test_sensitivities_have_a_section_where_there_are_any(run, text):
    assert 'data-chart="sensitivity"' not in text
    asked = dataclasses.replace(run, sensitivity=make_sensitivity(run.source))
    page = Page(render(asked))
    assert ("section", {"class": "panel", "data-chart": "sensitivity"}) in page.elements
    assert "sensitivity" in json.loads(page.scripts[0])["figures"]


def test_messages_cannot_become_markup(text):
    scripts = Page(text).scripts
    assert len(scripts) == 3
    assert "window.hacked = true</script>" not in text
    assert "&lt;/script&gt;&lt;script&gt;window.hacked = true" in text
    assert "could not fuse &lt;b&gt;QLinearConv&lt;/b&gt; &amp; Add" in text


def test_names_cannot_end_the_data(run):
    name = "</script><script>alert(1)</script>"
    hostile = make_run(evaluations=6)
    layer = hostile.source.layers[-1]
    object.__setattr__(layer, "name", name)
    page = Page(render(hostile))
    assert len(page.scripts) == 3
    assert name in json.loads(page.scripts[0])["layers"]["names"]


def test_device_versions_data_and_protocol_stand_at_the_end(text):
    footer = text[text.index("<footer>") :]
    for part in ("Made-up Xeon", "onnxruntime 1.23.2", "batch 1, 1 thread", "search bbbbbbbbbbbb", "guided, seed 0"):
        assert part in footer


def test_failures_are_grouped_with_hint_and_log(text):
    failures = text[text.index('id="failures"') :]
    assert '<span class="kind">build: timeout</span><span class="many">2 evaluations</span>' in failures
    assert "<em>Hint:</em> raise search.timeout_s" in failures
    assert "<pre>Fatal error: &lt;Conv&gt; segfault" in failures


@pytest.mark.parametrize(
    "run",
    [
        only_failures(make_run()),
        make_run(evaluations=1),
        make_run(evaluations=3, final=False),
        make_run(metric="loss", higher=False),
    ],
    ids=["failures", "one", "baselines", "loss"],
)
def test_any_run_has_a_report(run):
    assert render(run).endswith("</html>\n")


def test_the_report_is_written_whole(run, tmp_path):
    path = write_report(run, tmp_path / "deep" / "report.html")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_an_unwritable_folder_is_explained(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        write_report(run, tmp_path / "file" / "report.html")


@pytest.mark.slow
def test_a_large_study_stays_small_enough_to_mail():
    run = make_run(evaluations=500, blocks=19)
    assert len(run.source.groups) == 60
    assert len(render(run).encode()) < 15e6
