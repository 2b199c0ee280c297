"""The live dashboard in a real browser: headless Chromium, driven by Selenium."""

import threading

import pytest
from browser_support import NEEDS_BROWSER, By, Keys, browser, outside_requests, wait, webdriver
from dashboard_support import folder, paths
from tiny_search import search_tiny

from hwsearch.cli.dashboard import exporter

pytest.importorskip("dash", reason="dash is not installed")
from werkzeug.serving import make_server

from hwsearch.report.app import make_app
from hwsearch.report.watch import Board, Watched

__all__ = ["browser", "folder"]  # fixtures

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def url(folder):
    app = make_app(Board(paths(folder)), exporter(folder / "out"), refresh_s=1)
    server = make_server("127.0.0.1", 0, app.server, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.port}/"
    server.shutdown()
    thread.join()


@pytest.fixture
def page(browser, url):
    """The dashboard, freshly loaded, with both fronts drawn."""
    browser.get(url)
    browser.execute_script("localStorage.clear()")  # the view and the theme of the test before
    browser.get(url)
    wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, ".card .main-svg .scatterlayer")) == 2)
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def cards(page):
    return page.find_elements(By.CSS_SELECTOR, ".card")


def shown(page, card):
    """Evaluations a card's figure shows."""
    traces = page.execute_script(
        "return arguments[0].querySelector('.js-plotly-plot').data.map((trace) => trace.meta?.rows ?? [])", card
    )
    return {number for rows in traces for number in rows if number is not None}


def test_runs_stand_side_by_side_and_nobody_else_is_asked(page):
    assert [card.get_attribute("aria-label") for card in cards(page)] == ["first on fake", "second on fake"]
    assert "4 of 4 evaluations" in cards(page)[0].text
    tops = {card.rect["y"] for card in cards(page)}
    assert len(tops) == 1
    assert outside_requests(page, "127.0.0.1") == set()


def test_limits_filter_every_run(page, folder):
    table = Watched(paths(folder)[0]).facts().evaluations.sort_values("latency_ms")
    between = table["latency_ms"].iloc[1:3].mean()
    page.find_element(By.ID, "latency").send_keys(f"{between:.9f}")
    inside = set(table["number"].iloc[:2])
    wait(page, lambda: shown(page, cards(page)[0]) == inside)


def test_another_view_is_drawn_for_every_run(page):
    chosen = page.find_element(By.CSS_SELECTOR, "#view input:checked")
    chosen.send_keys(Keys.ARROW_DOWN)
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, ".card .heatmaplayer")) >= 2)


def test_a_point_is_picked_and_exported(page, folder):
    point = cards(page)[0].find_element(By.CSS_SELECTOR, ".scatterlayer .trace:last-of-type .point")
    webdriver.ActionChains(page).move_to_element(point).pause(0.5).click().perform()
    wait(page, lambda: cards(page)[0].find_elements(By.CSS_SELECTOR, ".command button"))
    key = cards(page)[0].find_element(By.CSS_SELECTOR, ".command code").text.split("--key ")[1].split()[0]
    page.execute_script("arguments[0].click()", cards(page)[0].find_element(By.CSS_SELECTOR, ".command button"))
    told = wait(page, lambda: cards(page)[0].find_element(By.CSS_SELECTOR, ".told").text)
    bundle = folder / "out" / f"first-fake-{key}"
    assert f"exported to {bundle}" in told
    assert (bundle / "hwsearch.json").exists()
    assert not cards(page)[1].find_elements(By.CSS_SELECTOR, ".command button")


def test_the_theme_reaches_the_figures(page):
    def colour():
        return page.execute_script("return document.querySelector('.js-plotly-plot').layout.font.color")

    before = colour()
    page.find_element(By.ID, "theme").click()
    wait(page, lambda: colour() != before)


def test_the_page_follows_a_search(page, folder):
    """Last: it changes the first run."""
    search_tiny(folder, name="first", evaluations=6)
    wait(page, lambda: "6 of 6 evaluations" in cards(page)[0].text)
    numbers = set(Watched(paths(folder)[0]).facts().evaluations["number"])
    assert len(numbers) == 6
    wait(page, lambda: shown(page, cards(page)[0]) == numbers)
