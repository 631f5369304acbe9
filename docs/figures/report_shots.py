"""Take pictures of a report for the documentation: `python docs/figures/report_shots.py quickstart/report.html`.

Each part of the page is shown alone in Chromium, which must be installed, and cut to its size.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops, ImageOps

HERE = Path(__file__).parent
PARTS = {
    "report_scores": (r"<h2>Scores</h2>.*?(?=<h3>validation|<h2>)", 900),
    "report_training": (r"<h2>Training</h2>.*?(?=<h2>)", 1200),
    "report_classes": (r"<h3>Classes, test</h3>.*?(?=<h3>)", 1000),
    "report_places": (r"<h3>Errors by place, test</h3>.*?(?=<h3>)", 1000),
    "report_calibration": (r"<h3>Calibration, test</h3>.*?(?=<h2>)", 1000),
    "report_matrix": (r"<h3>(?:Labels predicted together|Confused classes), test</h3>.*?(?=<h3>)", 1000),
    "report_patches": (r"<h3>Patches, test</h3>.*?(?=<h3>)", 1100),
}
"""Name of a picture -> where its part of the page is, and the width of the window."""
MARGIN = 12
"""Pixels around a picture."""


def shot(html: str, target: Path, width: int, height: int = 3000) -> None:
    """Show a page in Chromium and save what is on it.

    Args:
        html: The page.
        target: PNG to write.
        width: Width of the window in pixels.
        height: Its height; what is below is left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder) / "page.html", Path(folder) / "page.png"
        page.write_text(html)
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        image = Image.open(picture).convert("RGB")
    background = Image.new("RGB", image.size, image.getpixel((image.width - 1, image.height - 1)))
    left, top, right, bottom = ImageChops.difference(image, background).getbbox()
    tight = image.crop((left, top, right, bottom))
    ImageOps.expand(tight, MARGIN, background.getpixel((0, 0))).save(target, optimize=True)


def main() -> None:
    """Take all pictures of a report, and one of its top for the README."""
    text = Path(sys.argv[1]).read_text()
    head = text[: text.index("<h2>Scores</h2>")]
    shot(text, HERE / "report.png", 1200, 908)  # the README has room for the scores and the first curves
    for name, (pattern, width) in PARTS.items():
        found = re.search(pattern, text, re.DOTALL)
        if found is None:
            raise SystemExit(f"{sys.argv[1]} has no part {pattern}")
        style = re.search(r"<style>.*?</style>", head, re.DOTALL)
        shot(f"<!doctype html>{style[0] if style else ''}<body>{found[0]}</body>", HERE / f"{name}.png", width)


if __name__ == "__main__":
    main()
