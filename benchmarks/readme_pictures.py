"""Saves the README's pictures: of each notebook, the output of the cell tagged `readme`, as docs/<notebook>.png.

    python benchmarks/readme_pictures.py        # after `make notebooks`
"""

import base64
import sys
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab.files import ROOT, write_atomic


def main() -> None:
    for path in sorted(ROOT.glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        tagged = [cell for cell in cells if "readme" in cell.metadata.get("tags", [])]
        outputs = [out.get("data", {}) for cell in tagged for out in cell.outputs]
        pictures = [data["image/png"] for data in outputs if "image/png" in data]
        if len(pictures) != 1:
            sys.exit(f"{path.name}: {len(pictures)} pictures in {len(tagged)} cells tagged 'readme'; there must be one")
        write_atomic(ROOT / "docs" / f"{path.stem}.png", base64.b64decode(pictures[0]))
        print(f"docs/{path.stem}.png")


if __name__ == "__main__":
    main()
