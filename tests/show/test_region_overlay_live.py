"""Regions in a running show: counts over a reload, and the overlay of the panel in a real browser."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bridge.panel.server import PanelServer
from tests.engine.flows import save_sd3
from tests.show.browsing import OpenBrowser, browser, click, needs_chromium, text
from tests.show.stage import Stage
from tests.waiting import until

__all__ = ["browser"]  # a fixture
pytestmark = pytest.mark.slow
REGIONS = {"/regions": "change", "/regions/share": 0.25}
#: For each pixel of the overlay its opacity: null while it is hidden.
OVERLAY = """
    const canvas = document.getElementById('regionmap'), { width, height } = canvas;
    if (canvas.hidden) return null;
    const data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
    return { width, height, opacity: [...data].filter((_, i) => i % 4 == 3) };
"""


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, str]]:
    torch.manual_seed(0)
    model = str(save_sd3(tmp_path_factory.mktemp("sd3")))
    with Stage("pattern:ball", model=model, size="128x128", steps="1", dtype="float32", strength="0.3") as stage:
        stage.state.put(REGIONS)
        server = PanelServer(stage.show, "127.0.0.1", 0)
        stage.wait_until_live()
        yield stage, f"http://127.0.0.1:{server.port}/"
        server.close()


def read_status(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url + "status.json", timeout=5) as answer:
        return dict(json.load(answer)["engine"])


def read_metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url + "metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_tokens_are_counted_and_a_reload_does_not_begin_again(show: tuple[Stage, str]) -> None:
    stage, url = show
    until(lambda: stage.engine.regions and stage.engine.tokens_skipped > 1000, 20, "skipped tokens")
    status, metrics = read_status(url), read_metrics(url)
    assert 0 < status["region_share"] <= 0.5
    assert metrics["phosphene_tokens_skipped_total"] >= status["tokens_skipped"] > status["tokens_computed"] > 0
    assert metrics["phosphene_tokens_computed_total"] >= status["tokens_computed"]
    assert 0 < metrics["phosphene_region_share"] <= 0.5

    sums = (status["tokens_computed"], status["tokens_skipped"], status["skipped"])
    stage.send("/size", "96x96")
    until(lambda: stage.engine.size == "96x96", 60, "another size")
    for _ in range(3):  # reports, also the first one after the reload
        reported = stage.engine
        assert (reported.tokens_computed, reported.tokens_skipped, reported.skipped) >= sums
        until(lambda reported=reported: stage.engine is not reported, 5, "the next report")
    stage.send("/regions", "off")
    until(lambda: not stage.engine.regions, 10, "the end of the regions")
    off = read_status(url)
    assert (off["region_share"], off["regions"]) == (1.0, False)
    assert off["tokens_skipped"] > sums[1]
    stage.send("/size", "128x128")
    until(lambda: stage.engine.size == "128x128", 60, "the first size")
    stage.send("/regions", "change")


@needs_chromium
def test_the_overlay_dims_what_is_skipped_and_off_it_costs_nothing(
    show: tuple[Stage, str], browser: OpenBrowser
) -> None:
    stage, url = show
    supervisor = stage.show.supervisor
    page = browser(1200, 900)
    page.get(url)
    until(lambda: "fps" in text(page, "#numbers"), 20, "the panel")
    until(lambda: stage.engine.regions, 20, "regions")
    assert page.execute_script(OVERLAY) is None
    assert not page.find_element("css selector", "#regionshare").is_displayed()
    assert supervisor.region_map is None, "off, the engine sends nothing"

    click(page, "#regions")
    until(lambda: page.execute_script(OVERLAY), 10, "the overlay")

    def is_partly_dimmed() -> bool:
        overlay = page.execute_script(OVERLAY)
        assert overlay["width"] == overlay["height"]
        return len(set(overlay["opacity"])) == 2

    until(is_partly_dimmed, 10, "clear and dimmed regions")
    overlay, region_map = page.execute_script(OVERLAY), supervisor.region_map
    assert region_map is not None
    assert overlay["width"] * overlay["height"] == len(region_map.cells)
    assert overlay["opacity"].count(0) <= len(region_map.cells) // 2, "what was computed is clear"
    until(lambda: "% computed" in text(page, "#regionshare"), 5)
    image, canvas = (page.find_element("css selector", selector).rect for selector in ("#output", "#regionmap"))
    assert image == pytest.approx(canvas, abs=1)
    stage.send("/output/size", "128x64")  # the picture is stretched, and so are its regions

    def is_stretched() -> bool:
        wide = page.find_element("css selector", "#regionmap").rect
        below = image["y"] + image["height"] / 4
        return bool(wide == pytest.approx({**image, "y": below, "height": image["height"] / 2}, abs=1))

    until(is_stretched, 10, "the overlay of a wide picture")
    stage.send("/output/size", "")

    page.refresh()  # the browser remembers
    until(lambda: page.execute_script(OVERLAY), 10, "the overlay after a reload of the page")
    stage.send("/regions", "off")
    until(lambda: page.execute_script(OVERLAY) is None, 10, "the end of the overlay")
    until(lambda: text(page, "#regionshare") == "100 % computed", 5)
    stage.send("/regions", "change")
    until(lambda: page.execute_script(OVERLAY), 10, "the overlay")
    click(page, "#regions")
    until(lambda: supervisor.region_map is None, 5, "the last map")
    assert page.execute_script(OVERLAY) is None
    errors = [line["message"] for line in page.get_log("browser") if line["level"] == "SEVERE"]
    assert [error for error in errors if "thumbnails" not in error] == []
