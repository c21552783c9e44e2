"""The panel in a real browser, on a running show: clicks, a second browser beside, and what it costs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator

import pytest

from bridge.panel.server import PanelServer
from tests.show.stage import Stage, until

webdriver = pytest.importorskip("selenium.webdriver")
Opening = Callable[[int, int], "webdriver.Chrome"]
pytestmark = pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs chromium and chromium-driver")


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Stage, str]]:
    with Stage(cue_list="demo") as made:
        server = PanelServer(made.show, "127.0.0.1", 0)
        made.live()
        yield made, f"http://127.0.0.1:{server.port}/"
        server.close()


@pytest.fixture
def browser() -> Iterator[Opening]:
    opened = []

    def opening(width: int, height: int) -> webdriver.Chrome:
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"):
            options.add_argument(argument)
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        opened.append(webdriver.Chrome(options=options, service=service))
        return opened[-1]

    yield opening
    for each in opened:
        each.quit()


def text(page: webdriver.Chrome, selector: str) -> str:
    return page.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)


def brightness(page: webdriver.Chrome) -> float:
    """Of the output picture as the browser shows it, 0 to 255."""
    return page.execute_script(
        "const c = document.createElement('canvas'), i = document.getElementById('output'); c.width = c.height = 16;"
        "const p = c.getContext('2d'); p.drawImage(i, 0, 0, 16, 16); const d = p.getImageData(0, 0, 16, 16).data;"
        "let s = 0; for (let k = 0; k < d.length; k += 4) s += d[k] + d[k + 1] + d[k + 2]; return s / (16 * 16 * 3);"
    )


def click(page: webdriver.Chrome, selector: str) -> None:
    page.find_element("css selector", selector).click()


def test_a_click_on_go_is_seen_and_a_second_browser_follows(
    stage: tuple[Stage, str], browser: Callable[[int, int], webdriver.Chrome]
) -> None:
    show, url = stage
    laptop, phone = browser(1440, 900), browser(400, 860)
    for page in (laptop, phone):
        page.get(url)
    for page in (laptop, phone):
        until(lambda page=page: text(page, "#link") == "connected" and "fps" in text(page, "#numbers"), 20, "the panel")
        until(lambda page=page: len(page.find_elements("css selector", "#cuelist li")) == 5, 10, "the cue list")
        until(lambda page=page: brightness(page) > 10, 10, "the picture")
    assert laptop.find_element("css selector", "[data-preset=bonfire] img").is_displayed()
    assert not phone.find_element("css selector", "#presets").is_displayed(), "on a phone one part at a time"

    click(laptop, "#go")
    until(lambda: show.show.conductor.player.status()["current"] == "1", 5)
    until(lambda: "now 1" in text(phone, "#now"), 5, "the second browser")
    assert text(phone, "#cuelist li.current b") == "1"

    # A preset by its picture, a fader by hand, a toggle: each is seen on the other.
    click(laptop, "[data-preset=bonfire]")
    until(lambda: show.state.snapshot()["/prompt"] == "orange fire", 5)
    until(lambda: phone.execute_script("return values['/prompt']") == "orange fire", 5)
    click(phone, "[data-tab=controls]")
    field = phone.find_element("css selector", "[data-row='/strength'] input[type=number]")
    field.clear()
    field.send_keys("0.25\n")
    until(lambda: show.state.snapshot().real("/strength") == 0.25, 5)
    until(lambda: laptop.execute_script("return values['/strength']") == 0.25, 5)
    before = brightness(laptop)
    click(phone, "[data-toggle='/blackout']")
    until(lambda: brightness(laptop) < 3 < before, 5, "the blackout on the other's picture")
    assert "on" in laptop.find_element("css selector", "[data-toggle='/blackout']").get_attribute("class")
    click(laptop, "[data-fire='/panic']")
    until(lambda: brightness(phone) > 10, 5, "light")
    errors = [line for page in (laptop, phone) for line in page.get_log("browser") if "thumbnails" not in line["message"]]
    assert [line["message"] for line in errors if "favicon" not in line["message"]] == []


def test_every_parameter_has_its_control(stage: tuple[Stage, str], browser: Opening) -> None:
    _, url = stage
    page = browser(1200, 800)
    page.get(url)
    until(lambda: "fps" in text(page, "#numbers"), 20)
    from engine.parameters import TABLE

    shown = page.execute_script("return [...document.querySelectorAll('[data-row]')].map(r => r.dataset.row)")
    assert sorted(shown) == sorted(TABLE)
    page.find_element("css selector", "#filter").send_keys("feedback/zoom")
    time.sleep(0.2)
    visible = page.execute_script("return [...document.querySelectorAll('[data-row]')].filter(r => r.offsetParent).map(r => r.dataset.row)")
    assert visible == ["/feedback/zoom"]
