"""``python -m bridge.guides.drawing``: draw the guides' connection diagrams, boxes and arrows, as SVG."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
TOUCHDESIGNER = HERE.parent.parent / "touchdesigner"
#: Pixels: size of a box, gaps between columns and rows, outer margin.
BOX_WIDTH, BOX_HEIGHT, COLUMN_GAP, ROW_GAP, MARGIN = 210, 64, 150, 28, 24
INK, PAPER, PHOSPHENE_FILL, OTHER_FILL = "#1c1626", "#ffffff", "#e5d4ff", "#e8edf2"

#: Name → (column, row, first line, second line). Boxes whose name begins with "phosphene" get Phosphene's colour.
Boxes = Mapping[str, tuple[float, float, str, str]]
#: (from, to, label)
Arrows = Sequence[tuple[str, str, str]]

DIAGRAMS: dict[str, tuple[Boxes, Arrows]] = {
    "resolume": (
        {
            "deck": (0, 0, "Resolume: composition", "Output > Texture Sharing (Spout, Syphon)"),
            "phosphene": (1, 0, "phosphene run", "--desk resolume"),
            "layer": (2, 0, "Resolume: layer", "Sources > Spout/Syphon > phosphene-out"),
            "osc": (1, 1.2, "Resolume: OSC output", "Preferences > OSC, port 9000"),
        },
        [("deck", "phosphene", "video"), ("phosphene", "layer", "video"), ("osc", "phosphene", "faders, clips")],
    ),
    "obs": (
        {
            "camera": (0, 0, "OBS: program output", "NDI output named phosphene-in"),
            "phosphene": (1, 0, "phosphene run", "--source ndi:… --sink ndi:phosphene-out"),
            "scene": (2, 0, "OBS: scene", "NDI Source: phosphene-out"),
            "browser": (1, 1.2, "OBS: custom browser dock", "http://127.0.0.1:9001/"),
        },
        [("camera", "phosphene", "NDI"), ("phosphene", "scene", "NDI"), ("phosphene", "browser", "panel")],
    ),
    "mappers": (
        {
            "source": (0, 0, "Camera or VDMX layer", "Syphon or Spout: phosphene-in"),
            "phosphene": (1, 0, "phosphene run", "Syphon on macOS, Spout on Windows"),
            "mapper": (2, 0, "MadMapper, VDMX", "Syphon or Spout input: phosphene-out"),
            "osc": (1, 1.2, "MadMapper, VDMX: OSC", "discovers parameters by OSCQuery"),
        },
        [("source", "phosphene", "video"), ("phosphene", "mapper", "video"), ("osc", "phosphene", "OSC both ways")],
    ),
    "grandma3": (
        {
            "desk": (0, 0, "grandMA3", "Menu > In & Out > OSC"),
            "phosphene": (1, 0, "phosphene run", "--desk grandma3 --host 0.0.0.0"),
            "wall": (2, 0, "Media server, LED wall", "NDI, Spout or Syphon"),
        },
        [("desk", "phosphene", "/Page1/Fader201"), ("phosphene", "wall", "video")],
    ),
    "eos": (
        {
            "desk": (0, 0, "ETC Eos", "Setup > System > Show Control > OSC"),
            "phosphene": (1, 0, "phosphene run", "--desk eos --host 0.0.0.0"),
            "wall": (2, 0, "Media server, LED wall", "NDI, Spout or Syphon"),
        },
        [("desk", "phosphene", "cue fired"), ("phosphene", "wall", "video")],
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
            "stage": (0, 0, "Machine A", "NDI out: phosphene-in"),
            "phosphene": (1, 0, "Machine B: phosphene run", "--source ndi:… --sink ndi:… --host 0.0.0.0"),
            "back": (2, 0, "Machine A", "NDI in: B (phosphene-out)"),
            "panel": (1, 1.2, "Phone or laptop", "http://machine-b:9001/"),
        },
        [
            ("stage", "phosphene", "NDI, network"),
            ("phosphene", "back", "NDI, network"),
            ("panel", "phosphene", "panel"),
        ],
    ),
}


def draw_diagram(boxes: Boxes, arrows: Arrows) -> str:
    """Return the diagram as an SVG document."""
    positions = {
        name: (MARGIN + column * (BOX_WIDTH + COLUMN_GAP), MARGIN + row * (BOX_HEIGHT + ROW_GAP))
        for name, (column, row, *_) in boxes.items()
    }
    width = max(x for x, _ in positions.values()) + BOX_WIDTH + MARGIN
    height = max(y for _, y in positions.values()) + BOX_HEIGHT + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}"'
        f' viewBox="0 0 {width:g} {height:g}" font-family="Helvetica, Arial, sans-serif">',
        '<defs><marker id="tip" markerWidth="10" markerHeight="8" refX="9" refY="4" orient="auto">'
        f'<path d="M0 0L10 4L0 8z" fill="{INK}"/></marker></defs>',
        f'<rect width="100%" height="100%" fill="{PAPER}"/>',
    ]
    for start, end, label in arrows:
        lines += _arrow(positions[start], positions[end], label)
    for name, (_, _, first, second) in boxes.items():
        lines += _box(positions[name], first, second, name.startswith("phosphene"))
    return "\n".join([*lines, "</svg>", ""])


def _box(position: tuple[float, float], first: str, second: str, is_phosphene: bool) -> list[str]:
    x, y = position
    fill = PHOSPHENE_FILL if is_phosphene else OTHER_FILL
    return [
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="{fill}" stroke="{INK}"/>',
        _text(x + BOX_WIDTH / 2, y + (27 if second else 37), first, 14, weight="bold"),
        _text(x + BOX_WIDTH / 2, y + 46, second, 10.5),
    ]


def _arrow(start: tuple[float, float], end: tuple[float, float], label: str) -> list[str]:
    (x1, y1), (x2, y2) = start, end
    if abs(x1 - x2) < BOX_WIDTH / 2:  # one above the other
        down = y2 > y1
        a, b = x1 + BOX_WIDTH / 2, y1 + (BOX_HEIGHT if down else 0)
        c, d = x2 + BOX_WIDTH / 2, y2 + (0 if down else BOX_HEIGHT)
        caption = _text((a + c) / 2 + 8, (b + d) / 2 + 4, label, 11, "start")
    else:
        right = x2 > x1
        a, b = x1 + (BOX_WIDTH if right else 0), y1 + BOX_HEIGHT / 2
        c, d = x2 + (0 if right else BOX_WIDTH), y2 + BOX_HEIGHT / 2
        caption = _text((a + c) / 2, (b + d) / 2 - 8, label, 11)
    return [
        f'<line x1="{a:g}" y1="{b:g}" x2="{c:g}" y2="{d:g}" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"/>',
        caption,
    ]


def _text(x: float, y: float, text: str, size: float, anchor: str = "middle", weight: str = "normal") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{INK}">'
        f"{escape(text)}</text>"
    )


def draw_touchdesigner_network() -> str:
    """Return the network that touchdesigner/build.py builds, as an SVG document."""
    spec = importlib.util.spec_from_file_location("touchdesigner_build", TOUCHDESIGNER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    boxes = {
        ("phosphene " if operator_type.endswith("DAT") else "") + name: (x / 200, (100 - y) / 100, name, operator_type)
        for name, (operator_type, x, y) in build.OPERATORS.items()
    }
    return draw_diagram(boxes, [(start, end, "") for start, end in build.WIRES])


def main() -> None:
    """Write every diagram."""
    for name, (boxes, arrows) in DIAGRAMS.items():
        (HERE / f"{name}.svg").write_text(draw_diagram(boxes, arrows), encoding="utf-8")
    (TOUCHDESIGNER / "network.svg").write_text(draw_touchdesigner_network(), encoding="utf-8")


if __name__ == "__main__":
    main()
