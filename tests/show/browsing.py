"""Headless Chromium for tests of the panel."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.requirements_system import needs

webdriver = pytest.importorskip("selenium.webdriver")
#: Opens a browser window of a width and a height.
OpenBrowser = Callable[[int, int], "webdriver.Chrome"]
needs_chromium = needs("chromium", "chromedriver")
#: The mean red, green and blue of the output image, drawn into a canvas of 16 by 16.
MEAN_COLOUR = """
    const canvas = document.createElement('canvas'), image = document.getElementById('output');
    canvas.width = canvas.height = 16;
    const pen = canvas.getContext('2d');
    pen.drawImage(image, 0, 0, 16, 16);
    const data = pen.getImageData(0, 0, 16, 16).data, sums = [0, 0, 0];
    for (let k = 0; k < data.length; k++) if (k % 4 < 3) sums[k % 4] += data[k] / 256;
    return sums;
"""


@pytest.fixture
def browser() -> Iterator[OpenBrowser]:
    windows = []

    def open_window(width: int, height: int) -> webdriver.Chrome:
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"):
            options.add_argument(argument)
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        windows.append(webdriver.Chrome(options=options, service=service))
        return windows[-1]

    yield open_window
    for window in windows:
        window.quit()


def text(page: webdriver.Chrome, selector: str) -> str:
    """Return the text of the first element that matches, "" for none."""
    return page.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", selector)


def panel_value(page: webdriver.Chrome, name: str) -> object:
    """Return the value of a parameter as the panel shows it."""
    return page.execute_script("return window.panel.values[arguments[0]]", name)


def colour(page: webdriver.Chrome) -> np.ndarray:
    """Return the mean red, green and blue of the output as the browser shows it, 0 to 255."""
    return np.array(page.execute_script(MEAN_COLOUR))


def brightness(page: webdriver.Chrome) -> float:
    """Return the mean brightness of the output as the browser shows it, 0 to 255."""
    return float(colour(page).mean())


def click(page: webdriver.Chrome, selector: str) -> None:
    page.find_element("css selector", selector).click()
