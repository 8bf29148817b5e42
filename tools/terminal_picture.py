"""Draw what terminals show as one SVG: a picture for the README, of a real run.

tmux hands out what a pane shows, colours included; each file becomes a window, named after it:

    tmux capture-pane -e -p -t mesh.0 > laptop.ansi
    python tools/terminal_picture.py --width 96 laptop.ansi pi.ansi > docs/pictures/mesh.svg
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

GAP = 12  # between two windows, in the picture's own units
WINDOW = """<svg y="TOP" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font: {char_height}px/{line_height}px monospace }}
.{unique_id}-title {{ font: bold 18px sans-serif }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect width="{terminal_width}" height="{terminal_height}"/>
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>"""


def draw_window(captured: str, title: str, width: int) -> tuple[str, float, float]:
    """Return an SVG element that shall stand at ``y="TOP"``, how wide and how high it is."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(captured.rstrip()), no_wrap=True, crop=True)
    drawn = console.export_svg(title=title, code_format=WINDOW, unique_id=f"window-{title}")
    found = re.search(r'width="([\d.]+)" height="([\d.]+)"', drawn)
    if found is None:
        raise ValueError("the drawn window does not say how large it is")
    return drawn, float(found[1]), float(found[2])


def draw(windows: list[tuple[str, str]], width: int) -> str:
    """Return one SVG of (title, captured text) windows, one below the other."""
    top, widest, elements = 0.0, 0.0, []
    for title, captured in windows:
        element, wide, high = draw_window(captured, title, width)
        elements.append(element.replace('y="TOP"', f'y="{top:.1f}"', 1))
        top, widest = top + high + GAP, max(widest, wide)
    box = f'viewBox="0 0 {widest:.1f} {top - GAP:.1f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n' + "\n".join(elements) + "\n</svg>\n"


def main() -> None:
    """Write the picture of the given captures to stdout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("captures", nargs="+", type=Path, metavar="FILE", help="TITLE.ansi")
    parser.add_argument("--width", type=int, default=96, help="columns of a window")
    arguments = parser.parse_args()
    windows = [(path.stem, path.read_text(encoding="utf-8")) for path in arguments.captures]
    sys.stdout.write(draw(windows, arguments.width))


if __name__ == "__main__":
    main()
