"""Headless Chromium for tests of the panel."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest

webdriver = pytest.importorskip("selenium.webdriver")
Opening = Callable[[int, int], "webdriver.Chrome"]
needs_chromium = pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs chromium and chromium-driver")


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


def colour(page: webdriver.Chrome) -> np.ndarray:
    """Mean red, green and blue of the output picture as the browser shows it, 0 to 255."""
    return np.array(
        page.execute_script(
            "const c = document.createElement('canvas'), i = document.getElementById('output'); c.width = c.height = 16;"
            "const p = c.getContext('2d'); p.drawImage(i, 0, 0, 16, 16); const d = p.getImageData(0, 0, 16, 16).data;"
            "const s = [0, 0, 0]; for (let k = 0; k < d.length; k++) if (k % 4 < 3) s[k % 4] += d[k] / 256; return s;"
        )
    )


def brightness(page: webdriver.Chrome) -> float:
    """Of the output picture as the browser shows it, 0 to 255."""
    return float(colour(page).mean())


def click(page: webdriver.Chrome, selector: str) -> None:
    page.find_element("css selector", selector).click()
