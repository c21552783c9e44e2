"""``python -m bridge.guides.drawing``: draws the guides' pictures, boxes and arrows, as SVG."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
TOUCHDESIGNER = HERE.parent.parent / "touchdesigner"
#: Sizes in pixels: a box, the space between columns and between rows, the margin.
WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 210, 64, 150, 28, 24
INK, PAPER, OURS, THEIRS = "#1c1626", "#ffffff", "#e5d4ff", "#e8edf2"

#: A box: name → (column, row, first line, second line). Phosphene's own are those whose name begins with "phosphene".
Boxes = Mapping[str, tuple[float, float, str, str]]
#: An arrow: from, to, what travels on it.
Arrows = Sequence[tuple[str, str, str]]

FLOWS: dict[str, tuple[Boxes, Arrows]] = {
    "resolume": (
        {
            "deck": (0, 0, "Resolume: composition", "Output > Texture Sharing (Spout, Syphon)"),
            "phosphene": (1, 0, "phosphene run", "--desk resolume"),
            "layer": (2, 0, "Resolume: layer", "Sources > Spout/Syphon > phosphene-out"),
            "osc": (1, 1.2, "Resolume: OSC output", "Preferences > OSC, port 9000"),
        },
        [("deck", "phosphene", "picture"), ("phosphene", "layer", "picture"), ("osc", "phosphene", "faders, clips")],
    ),
    "obs": (
        {
            "camera": (0, 0, "OBS: programme", "NDI output named phosphene-in"),
            "phosphene": (1, 0, "phosphene run", "--source ndi:… --sink ndi:phosphene-out"),
            "scene": (2, 0, "OBS: scene", "NDI Source: phosphene-out"),
            "browser": (1, 1.2, "OBS: custom browser dock", "http://127.0.0.1:9001/"),
        },
        [("camera", "phosphene", "NDI"), ("phosphene", "scene", "NDI"), ("phosphene", "browser", "panel")],
    ),
    "mappers": (
        {
            "source": (0, 0, "camera, VDMX layer", "Syphon or Spout: phosphene-in"),
            "phosphene": (1, 0, "phosphene run", "Syphon on macOS, Spout on Windows"),
            "mapper": (2, 0, "MadMapper, VDMX", "Syphon or Spout input: phosphene-out"),
            "osc": (1, 1.2, "MadMapper, VDMX: OSC", "finds the parameters by OSCQuery"),
        },
        [("source", "phosphene", "picture"), ("phosphene", "mapper", "picture"), ("osc", "phosphene", "OSC both ways")],
    ),
    "grandma3": (
        {
            "desk": (0, 0, "grandMA3", "Menu > In & Out > OSC"),
            "phosphene": (1, 0, "phosphene run", "--desk grandma3 --host 0.0.0.0"),
            "wall": (2, 0, "media server, LED wall", "NDI, Spout or Syphon"),
        },
        [("desk", "phosphene", "/Page1/Fader201"), ("phosphene", "wall", "picture")],
    ),
    "eos": (
        {
            "desk": (0, 0, "ETC Eos", "Setup > System > Show Control > OSC"),
            "phosphene": (1, 0, "phosphene run", "--desk eos --host 0.0.0.0"),
            "wall": (2, 0, "media server, LED wall", "NDI, Spout or Syphon"),
        },
        [("desk", "phosphene", "cue fired"), ("phosphene", "wall", "picture")],
    ),
    "qlcplus": (
        {
            "console": (0, 0, "QLC+: virtual console", "sliders and buttons"),
            "universe": (1, 0, "QLC+: universe 1", "Inputs/Outputs: OSC or Art-Net output"),
            "phosphene": (2, 0, "phosphene run", "--desk qlcplus, or --artnet"),
        },
        [("console", "universe", "channels"), ("universe", "phosphene", "/0/dmx/0")],
    ),
    "two-machines": (
        {
            "stage": (0, 0, "machine A", "NDI out: phosphene-in"),
            "phosphene": (1, 0, "machine B: phosphene run", "--source ndi:… --sink ndi:… --host 0.0.0.0"),
            "back": (2, 0, "machine A", "NDI in: B (phosphene-out)"),
            "panel": (1, 1.2, "phone, laptop", "http://machine-b:9001/"),
        },
        [
            ("stage", "phosphene", "NDI, network"),
            ("phosphene", "back", "NDI, network"),
            ("panel", "phosphene", "panel"),
        ],
    ),
}


def drawn(boxes: Boxes, arrows: Arrows) -> str:
    """The picture as SVG."""
    places = {
        name: (MARGIN + column * (WIDTH + ACROSS), MARGIN + row * (HEIGHT + DOWN))
        for name, (column, row, *_) in boxes.items()
    }
    width = max(x for x, _ in places.values()) + WIDTH + MARGIN
    height = max(y for _, y in places.values()) + HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
        ' font-family="Helvetica, Arial, sans-serif">',
        f'<defs><marker id="tip" markerWidth="10" markerHeight="8" refX="9" refY="4" orient="auto"><path d="M0 0L10 4L0 8z" fill="{INK}"/>'
        "</marker></defs>",
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
    ]
    for start, end, what in arrows:
        lines += _arrow(places[start], places[end], what)
    for name, (_, _, first, second) in boxes.items():
        x, y = places[name]
        fill = OURS if name.startswith("phosphene") else THEIRS
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{fill}" stroke="{INK}"/>'
        )
        lines.append(_text(x + WIDTH / 2, y + (27 if second else 37), first, 14, weight="bold"))
        lines.append(_text(x + WIDTH / 2, y + 46, second, 10.5))
    return "\n".join([*lines, "</svg>", ""])


def _arrow(start: tuple[float, float], end: tuple[float, float], what: str) -> list[str]:
    (x1, y1), (x2, y2) = start, end
    if abs(x1 - x2) < WIDTH / 2:  # one above the other
        down = y2 > y1
        ends = (x1 + WIDTH / 2, y1 + (HEIGHT if down else 0), x2 + WIDTH / 2, y2 + (0 if down else HEIGHT))
        label = _text((ends[0] + ends[2]) / 2 + 8, (ends[1] + ends[3]) / 2 + 4, what, 11, "start")
    else:
        right = x2 > x1
        ends = (x1 + (WIDTH if right else 0), y1 + HEIGHT / 2, x2 + (0 if right else WIDTH), y2 + HEIGHT / 2)
        label = _text((ends[0] + ends[2]) / 2, (ends[1] + ends[3]) / 2 - 8, what, 11)
    a, b, c, d = ends
    return [
        f'<line x1="{a:g}" y1="{b:g}" x2="{c:g}" y2="{d:g}" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"/>',
        label,
    ]


def _text(x: float, y: float, words: str, size: float, anchor: str = "middle", weight: str = "normal") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{INK}">{escape(words)}</text>'


def network() -> str:
    """The TouchDesigner component's network, as its script builds it."""
    spec = importlib.util.spec_from_file_location("touchdesigner_build", TOUCHDESIGNER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    boxes = {
        ("phosphene " if kind.endswith("DAT") else "") + name: (x / 200, (100 - y) / 100, name, kind)
        for name, (kind, x, y) in build.OPERATORS.items()
    }
    return drawn(boxes, [(start, end, "") for start, end in build.WIRES])


def main() -> None:
    """Writes every picture."""
    for name, (boxes, arrows) in FLOWS.items():
        (HERE / f"{name}.svg").write_text(drawn(boxes, arrows), encoding="utf-8")
    (TOUCHDESIGNER / "network.svg").write_text(network(), encoding="utf-8")


if __name__ == "__main__":
    main()
