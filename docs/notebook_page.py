"""Write a page of the docs from a notebook: its text, its code, and what the code showed when it was last run."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FENCE = "````"
"""Longer than any fence inside a cell."""


def write_notebook_page(notebook: Path, folder: Path) -> None:
    """Write `NAME.md` and its pictures into a folder.

    Args:
        notebook: Notebook that was run: its outputs are in the file.
        folder: Folder of generated pages, beside the notebook's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = json.loads(notebook.read_text())["cells"]
    pictures = Pictures(folder, notebook.stem)
    title, *rest = [part for cell in cells for part in parts_of(cell, pictures)]
    where = f"../{notebook.parent.name}/{notebook.name}"
    hint = f"Download it: {{download}}`{notebook.name} <{where}>`. Run it in Jupyter, where `stssl` is installed."
    heading, _, text = title.partition("\n\n")
    (folder / f"{notebook.stem}.md").write_text("\n\n".join([heading, hint, text, *rest]) + "\n")


class Pictures:
    """Save pictures of outputs beside the page, with numbered names."""

    def __init__(self, folder: Path, stem: str) -> None:
        """Start with number 1.

        Args:
            folder: Folder of the pictures.
            stem: Beginning of their names.
        """
        self.folder, self.stem, self.count = folder, stem, 0

    def save(self, data: str) -> str:
        """Write a PNG from base64, and return its name."""
        self.count += 1
        name = f"{self.stem}_{self.count}.png"
        (self.folder / name).write_bytes(base64.b64decode(data))
        return name


def parts_of(cell: Any, pictures: Pictures) -> Iterator[str]:
    """Yield the Markdown of a cell, and of its outputs."""
    if cell["cell_type"] == "markdown":
        yield joined(cell["source"])
        return
    yield f"{FENCE}{{code-block}} python\n{joined(cell['source'])}\n{FENCE}"
    lines = ""
    for output in [*cell["outputs"], {"output_type": "end"}]:
        if output["output_type"] == "stream":  # a kernel splits the lines of one output arbitrarily
            lines += joined(output["text"])
            continue
        if lines:
            yield shown(lines)
            lines = ""
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![Output of the cell above]({pictures.save(joined(data['image/png']))})"
        elif "text/plain" in data:
            yield shown(joined(data["text/plain"]))


def joined(text: str | list[str]) -> str:
    """Join the lines of a notebook's text."""
    return text if isinstance(text, str) else "".join(text)


def shown(text: str) -> str:
    """Write an output as a block, without colors of a terminal."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip("\n")
    return f"{FENCE}{{code-block}} text\n:class: output\n\n{plain}\n{FENCE}"
