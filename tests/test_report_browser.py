"""The report in a real browser: headless Chromium, driven by Selenium."""

import time

import pytest
from browser_support import NEEDS_BROWSER, By, Keys, browser, frame, outside_requests, wait, webdriver
from synthetic_run import make_run

from hwsearch.report import frames
from hwsearch.report.html import write_report

pytestmark = NEEDS_BROWSER
RUN = make_run()

__all__ = ["browser"]  # a fixture


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(RUN, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def page(browser, report):
    """The report, freshly loaded, with its first chart drawn."""
    browser.get(report.as_uri())
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "[data-chart=pareto] .plot .main-svg"))
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def drawn(page, name):
    """The traces of a chart as they are drawn now, brought into view first."""
    plot = page.find_element(By.CSS_SELECTOR, f"[data-chart={name}] .plot")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    wait(page, lambda: plot.find_elements(By.CSS_SELECTOR, ".main-svg"))
    frame(page)
    return page.execute_script(
        "return arguments[0].data.map(({type, name, x, y, meta, text, visible}) => ({type, name, x, y, meta, text}))",
        plot,
    )


def numbers(traces):
    return {n for t in traces for n in (t["meta"] or {}).get("rows", []) if n is not None}


def slide(page, name, steps, key):
    slider = page.find_element(By.ID, f"limit-{name}")
    slider.send_keys(*[key] * steps)
    frame(page)


def table_rows(page):
    return page.find_elements(By.CSS_SELECTOR, "#table tbody tr")


def tick(page, number):
    box = page.find_element(By.CSS_SELECTOR, f'[data-focus="row-{number}"]')
    page.execute_script("arguments[0].click()", box)
    frame(page)


def deselect_all(page):
    while chips := page.find_elements(By.CSS_SELECTOR, "#chips button"):
        page.execute_script("arguments[0].click()", chips[0])
        frame(page)


def test_the_page_is_silent_and_asks_the_network_for_nothing(page):
    for name in ("layer_formats", "layer_latency", "hypervolume", "stage_time", "parallel"):
        assert drawn(page, name)
    assert outside_requests(page) == set()
    assert page.execute_script("return window.hacked") is None
    assert page.find_elements(By.CSS_SELECTOR, "#failures b") == []


def test_sliders_filter_every_chart_and_the_table(page):
    everything = {name: numbers(drawn(page, name)) for name in ("pareto", "layer_formats", "stage_time", "parallel")}
    slide(page, "latency", 30, Keys.ARROW_LEFT)
    slide(page, "accuracy", 3, Keys.ARROW_RIGHT)
    table = frames.evaluations(RUN)
    fastest = table.sort_values("latency_ms")["latency_ms"].iloc[len(table) - 31]
    least = table.sort_values("accuracy")["accuracy"].iloc[3]
    inside = set(table.loc[(table["latency_ms"] <= fastest) & (table["accuracy"] >= least), "number"])
    assert 0 < len(inside) < len(table)
    for name, before in everything.items():
        after = numbers(drawn(page, name))
        assert after == before & inside, name
        assert after != before, name
    assert numbers(drawn(page, "hypervolume")) <= inside
    assert len(table_rows(page)) == len(inside)
    assert page.find_element(By.ID, "count").text == f"{len(inside)} of {len(table)} models"


def test_reset_shows_everything_again(page):
    slide(page, "size", 10, Keys.ARROW_LEFT)
    assert len(table_rows(page)) < len(frames.evaluations(RUN))
    page.find_element(By.CSS_SELECTOR, "[type=reset]").click()
    frame(page)
    assert len(table_rows(page)) == len(frames.evaluations(RUN))


def test_a_selection_in_the_table_shows_everywhere(page):
    number = next(p.trial for p in RUN.front.points if p.on_front and not p.baseline)
    key = RUN.trials[number].candidate.key
    deselect_all(page)
    tick(page, number)
    assert key in page.find_element(By.ID, "compare-body").text
    ring = next(t for t in drawn(page, "pareto") if t["text"] == ["A"])
    assert ring["x"] == pytest.approx([p.latency.best_ms for p in RUN.front.points if p.trial == number], rel=1e-4)
    assert numbers(drawn(page, "layer_latency")) == {number}
    shapes = page.execute_script(
        "return document.querySelector('[data-chart=layer_formats] .plot').layout.shapes.length"
    )
    assert shapes == 1


def test_clicking_a_point_selects_it(page):
    point = page.find_element(By.CSS_SELECTOR, "[data-chart=pareto] .scatterlayer .trace:last-of-type .point")
    before = page.find_element(By.ID, "chips").text
    webdriver.ActionChains(page).move_to_element(point).pause(0.4).click().perform()
    wait(page, lambda: page.find_element(By.ID, "chips").text != before)


def test_compare_shows_only_the_layers_that_differ(page):
    deselect_all(page)
    fp32, bf16 = RUN.trials[0], RUN.trials[1]
    tick(page, fp32.number)
    tick(page, bf16.number)
    layers = page.find_elements(By.CSS_SELECTOR, "#compare tr.differs th")
    assert [cell.text for cell in layers] == [layer.name for layer in RUN.source.layers]
    tick(page, bf16.number)
    assert page.find_elements(By.CSS_SELECTOR, "#compare tr.differs") == []


def test_at_most_four_models_are_compared(page):
    for number in range(5, 9):
        tick(page, number)
    letters = page.find_elements(By.CSS_SELECTOR, "#compare thead .letter")
    assert [letter.text for letter in letters] == ["A", "B", "C", "D"]


def test_the_chart_can_be_walked_with_the_keyboard(page):
    plot = page.find_element(By.CSS_SELECTOR, "[data-chart=pareto] .plot")
    plot.send_keys(Keys.ARROW_RIGHT)
    frame(page)
    plot.send_keys(Keys.ENTER)
    frame(page)
    table = frames.evaluations(RUN).sort_values("latency_ms")
    assert table["key"].iloc[0] in page.find_element(By.ID, "compare-body").text


def test_the_table_sorts_searches_and_narrows(page):
    header = page.find_element(By.CSS_SELECTOR, '[data-focus="sort-size_mb"]')
    header.send_keys(Keys.ENTER)
    frame(page)
    sizes = [float(row.find_elements(By.TAG_NAME, "td")[7].text) for row in table_rows(page)]
    assert sizes == sorted(sizes)
    page.find_element(By.ID, "find").send_keys("bf16")
    frame(page)
    assert len(table_rows(page)) == 1
    page.find_element(By.ID, "find").clear()
    page.find_element(By.ID, "find").send_keys(" ")
    page.execute_script("arguments[0].click()", page.find_element(By.ID, "front-only"))
    frame(page)
    table = frames.evaluations(RUN)
    assert len(table_rows(page)) == (table["on_front"] | table["baseline"].notna()).sum()


def test_the_table_downloads_as_csv_with_export_commands(page):
    page.execute_script("arguments[0].click()", page.find_element(By.ID, "csv"))
    path = page.folder / "cifar10-resnet20-ort-cpu.csv"
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    lines = path.read_text().splitlines()
    table = frames.evaluations(RUN).sort_values("latency_ms")
    assert len(lines) == 1 + len(table)
    key = table["key"].iloc[0]
    assert lines[1].endswith(f"hwsearch export 'runs/cifar10 resnet20/ort-cpu' --key {key} --out out/{key}")


def test_the_theme_switches_and_is_remembered(page, report):
    root = page.find_element(By.TAG_NAME, "html")
    before = root.get_attribute("data-theme")
    page.find_element(By.ID, "theme").click()
    after = root.get_attribute("data-theme")
    assert {before, after} == {"light", "dark"}
    page.get(report.as_uri())
    assert page.find_element(By.TAG_NAME, "html").get_attribute("data-theme") == after


def test_the_heat_map_switches_to_channels(page):
    tab = page.find_element(By.CSS_SELECTOR, '[data-tab="layer_channels"]')
    tab.send_keys(Keys.ENTER)
    assert {t["type"] for t in drawn(page, "layer_channels")} >= {"heatmap", "bar"}
    assert tab.get_attribute("aria-selected") == "true"
