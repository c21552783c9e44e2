"""``python -m bridge.commands.generate_docs``: writes what is made from the table, the README's reference and the TouchDesigner component's pages."""

from __future__ import annotations

import re
from pathlib import Path

from bridge.commands import touchdesigner_parameters as component
from engine.shared.table import TABLE

BEGIN, END = "<!-- parameters: made by `python -m bridge.commands.generate_docs` -->", "<!-- end of parameters -->"


def markdown() -> str:
    """The table as Markdown, one row a parameter."""
    rows = ["| Address | Type | Range | Default | | What it does |", "| --- | --- | --- | --- | --- | --- |"]
    for p in TABLE.values():
        default = {"trigger": "", "bool": "on" if p.default else "off"}.get(p.kind, p.default)
        shown = f"`{default}`" if default != "" else ""
        when = "live" if p.live else "reload"
        rows.append(f"| `{p.name}` | {p.kind} | {p.range_text()} | {shown} | {when} | {p.help} |")
    return "\n".join(rows)


def updated(readme: str) -> str:
    """``readme`` with the reference made anew."""
    return re.sub(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: f"{BEGIN}\n{markdown()}\n{END}", readme, flags=re.DOTALL
    )


if __name__ == "__main__":
    path = Path("README.md")
    path.write_text(updated(path.read_text(encoding="utf-8")), encoding="utf-8")
    Path("touchdesigner/parameters.json").write_text(component.text(), encoding="utf-8")
