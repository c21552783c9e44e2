"""The panel in a real browser on a running show: clicks, a second browser, and what panels cost the stream."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bridge.panel.server import PanelServer
from tests.show.browsing import OpenBrowser, brightness, browser, click, colour, needs_chromium, panel_value, text
from tests.show.stage import Stage
from tests.waiting import until

__all__ = ["browser"]  # a fixture
pytestmark = needs_chromium
WATCHERS = str(Path(__file__).with_name("watchers.py"))


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[Stage, str]]:
    with Stage(cue_list="demo") as stage:
        server = PanelServer(stage.show, "127.0.0.1", 0)
        stage.wait_until_live()
        yield stage, f"http://127.0.0.1:{server.port}/"
        server.close()


def test_a_click_on_go_is_seen_and_a_second_browser_follows(stage: tuple[Stage, str], browser: OpenBrowser) -> None:
    show, url = stage
    laptop, phone = browser(1440, 900), browser(400, 860)
    for page in (laptop, phone):
        page.get(url)
    for page in (laptop, phone):
        until(lambda page=page: text(page, "#link") == "connected" and "fps" in text(page, "#numbers"), 20, "the panel")
        until(lambda page=page: len(page.find_elements("css selector", "#cuelist li")) == 5, 10, "the cue list")
        until(lambda page=page: brightness(page) > 10, 10, "the preview")
    assert laptop.find_element("css selector", "[data-preset=bonfire] img").is_displayed()
    assert not phone.find_element("css selector", "#presets").is_displayed(), "on a phone one part at a time"

    before = colour(laptop)
    click(laptop, "#go")
    until(lambda: np.abs(colour(laptop) - before).max() > 15, 10, "another output")
    until(lambda: show.show.automation.cues.status()["current"] == "1", 5)
    until(lambda: "now 1" in text(phone, "#now"), 5, "the second browser")
    assert text(phone, "#cuelist li.current b") == "1"

    # A preset by its thumbnail, a slider, a toggle: each is seen on the other.
    click(laptop, "[data-preset=bonfire]")
    until(lambda: show.state.snapshot()["/prompt"] == "orange fire", 5)
    until(lambda: panel_value(phone, "/prompt") == "orange fire", 5)
    click(phone, "[data-tab=controls]")
    field = phone.find_element("css selector", "[data-row='/strength'] input[type=number]")
    field.clear()
    field.send_keys("0.25\n")
    until(lambda: show.state.snapshot().real("/strength") == 0.25, 5)
    until(lambda: panel_value(laptop, "/strength") == 0.25, 5)
    before = brightness(laptop)
    click(phone, "[data-toggle='/blackout']")
    until(lambda: brightness(laptop) < 3 < before, 5, "the blackout on the other's preview")
    until(
        lambda: "on" in laptop.find_element("css selector", "[data-toggle='/blackout']").get_attribute("class"),
        5,
        "its button",
    )
    click(laptop, "[data-fire='/panic']")
    until(lambda: brightness(phone) > 10, 5, "light")
    errors = [
        line for page in (laptop, phone) for line in page.get_log("browser") if "thumbnails" not in line["message"]
    ]
    assert [line["message"] for line in errors] == []


def test_every_parameter_has_its_control(stage: tuple[Stage, str], browser: OpenBrowser) -> None:
    _, url = stage
    page = browser(1200, 800)
    page.get(url)
    until(lambda: "fps" in text(page, "#numbers"), 20)
    from engine.shared.table import TABLE

    shown = page.execute_script("return [...document.querySelectorAll('[data-row]')].map(r => r.dataset.row)")
    assert sorted(shown) == sorted(TABLE)
    page.find_element("css selector", "#filter").send_keys("feedback/zoom")
    time.sleep(0.2)
    visible = page.execute_script(
        "return [...document.querySelectorAll('[data-row]')].filter(r => r.offsetParent).map(r => r.dataset.row)"
    )
    assert visible == ["/feedback/zoom"]


def test_a_control_is_learned_at_the_panel(browser: OpenBrowser, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[preset\n", encoding="utf-8")
    with Stage(presets=[tmp_path]) as stage:
        server = PanelServer(stage.show, "127.0.0.1", 0)
        page = browser(1200, 900)
        page.get(f"http://127.0.0.1:{server.port}/")
        until(lambda: "preset broken" in text(page, "#notice"), 20, "the problem of a preset")
        row = "[data-row='/strength']"
        for selector in (f"{row} label", f"{row} .learn"):
            target = page.find_element("css selector", selector)
            page.execute_script("arguments[0].scrollIntoView({block: 'center'})", target)
            target.click()
        until(lambda: "bound to /strength" in text(page, "#notice"), 5, "the parameter to learn")
        stage.desk.send_message("/wing/fader/7", [0.5])
        until(lambda: "bound to" not in text(page, "#notice"), 5, "the end of learning")
        stage.desk.send_message("/wing/fader/7", [0.25])
        until(lambda: panel_value(page, "/strength") == 0.25, 5, "the desk's fader")
        server.close()
    assert "/wing/fader/7" in (tmp_path / "desks" / "learned.toml").read_text(encoding="utf-8")


def test_eight_panels_cost_the_stream_little(stage: tuple[Stage, str]) -> None:
    """Compare CPU time and fps with and without eight panels, in turns. The panels run in another process.

    The engine uses every core it gets, so the panels cost it their share of two cores. Its fps would show that too,
    but on a shared machine they vary by more than that.
    """
    show, url = stage
    rates: dict[bool, list[float]] = {True: [], False: []}
    cpu_shares: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(6):
        watched = turn % 2 == 1
        process = (
            subprocess.Popen([sys.executable, WATCHERS, url, "8"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if watched
            else None
        )
        if process is not None:
            assert process.stdout is not None
            assert process.stdout.readline() == b"watching\n"
        time.sleep(0.5)
        frames, start, busy = show.show.meter.frames, time.perf_counter(), time.process_time()
        time.sleep(3)
        cpu_shares[watched].append((time.process_time() - busy) / (time.perf_counter() - start))
        rates[watched].append((show.show.meter.frames - frames) / (time.perf_counter() - start))
        if process is not None:
            byte_count, _ = process.communicate(timeout=10)
            assert int(byte_count) > 1_000_000, "they received the video streams"
    cost = (np.median(cpu_shares[True]) - np.median(cpu_shares[False])) / 2
    slower = 1 - np.median(rates[True]) / np.median(rates[False])
    print(
        f"eight panels: {cost:.1%} of two cores;"
        f" {np.median(rates[False]):.1f} fps without, {np.median(rates[True]):.1f} with"
    )
    assert 0 < cost < 0.05, cpu_shares
    assert slower < 0.2, rates
