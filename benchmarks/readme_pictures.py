"""Saves the README's pictures: what the notebooks' cells tagged `readme` and `trace-view` show, as docs/*.png.

    python benchmarks/readme_pictures.py                       # after `make notebooks`
    python benchmarks/readme_pictures.py --browser chromium    # and docs/trace.png, photographed in a browser
"""

import argparse
import base64
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab.files import ROOT, write_atomic

WIDTH, HEIGHT = 1240, 1400  # of the browser's window, in pixels


def tagged(notebook: Path, tag: str) -> list:
    """The cells of a notebook that carry a tag."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [cell for cell in cells if tag in cell.metadata.get("tags", [])]


def save_plots() -> None:
    """docs/<notebook>.png: the one picture in the cells tagged `readme`."""
    for path in sorted(ROOT.glob("*.ipynb")):
        outputs = [out.get("data", {}) for cell in tagged(path, "readme") for out in cell.outputs]
        pictures = [data["image/png"] for data in outputs if "image/png" in data]
        if len(pictures) != 1:
            sys.exit(f"{path.name}: {len(pictures)} pictures in the cells tagged 'readme'; there must be one")
        write_atomic(ROOT / "docs" / f"{path.stem}.png", base64.b64decode(pictures[0]))
        print(f"docs/{path.stem}.png")


def save_view(browser: str) -> None:
    """docs/trace.png: the cell tagged `trace-view` as a browser shows it, without the empty space around it."""
    from nbconvert import HTMLExporter
    from PIL import Image, ImageChops

    notebook = nbformat.v4.new_notebook(cells=tagged(ROOT / "testing_modules.ipynb", "trace-view"))
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "page.html"), Path(folder, "shot.png")
        page.write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        size = [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}"]
        subprocess.run([browser, *options, *size, page.as_uri()], check=True, capture_output=True, timeout=120)
        picture = Image.open(shot).convert("RGB")
        left, top, right, bottom = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()
        picture = picture.crop((max(left - 8, 0), max(top - 8, 0), right + 8, bottom + 8))
        picture.quantize(128).save(ROOT / "docs" / "trace.png", optimize=True)
    print("docs/trace.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", help="a Chromium to photograph the folding view with, such as chromium")
    options = parser.parse_args()
    save_plots()
    if options.browser:
        save_view(options.browser)


if __name__ == "__main__":
    main()
