"""An HTML document of headings, sentences, tables and figures, written as one file."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsc_pyro._files import replacing
from vsc_pyro.arviz_bridge.versions import matplotlib_figure
from vsc_pyro.pages.files import escaped, write_page

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class Document:
    """A document, built part by part.

    Args:
        title: title of the document.
        folder: folder that also receives the figures as PNG files; None for none.
    """

    def __init__(self, title: str, folder: Path | None = None) -> None:
        self.title, self.folder = title, folder
        self.parts: list[str] = []
        self.headings: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section."""
        self.headings.append(text)
        self.parts.append(f'<h2 id="part{len(self.headings)}">{escaped(text)}</h2>')

    def text(self, sentence: str) -> None:
        """Add a paragraph."""
        self.parts.append(f"<p>{escaped(sentence)}</p>")

    def plain(self, lines: str) -> None:
        """Add preformatted lines."""
        self.parts.append(f"<pre>{escaped(lines)}</pre>")

    def table(self, frame: pandas.DataFrame, caption: str, index: bool = True) -> None:
        """Add a table under its caption."""
        self.text(caption)
        style = {"border": 0, "float_format": "{:.6g}".format, "justify": "left", "na_rep": "", "index": index}
        self.parts.append(f'<div class="wide">{frame.to_html(**style)}</div>')

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Add a figure above its caption."""
        picture = io.BytesIO()
        figure.savefig(picture, dpi=130, bbox_inches="tight", format="png")
        if self.folder is not None:
            with replacing(self.folder / f"{name}.png") as temporary:
                temporary.write_bytes(picture.getvalue())
        source = base64.b64encode(picture.getvalue()).decode()
        caption = escaped(caption)
        image = f'<img src="data:image/png;base64,{source}" alt="{caption}">'
        self.parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")

    def arviz_figure(self, name: str, shown: Any, label: str, caption: str) -> None:
        """Add a figure drawn by ArviZ, label its axes, and close it."""
        from matplotlib import pyplot

        figure = matplotlib_figure(shown)
        figure.set_layout_engine("constrained")  # else titles overlap the labels of the panel above
        for axes in figure.axes:
            axes.tick_params(labelsize=8)
            axes.set_xlabel(label, fontsize=9)
        self.figure(name, figure, caption)
        pyplot.close(figure)

    @contextlib.contextmanager
    def unless_refused(self, what: str) -> Iterator[None]:
        """Write the reason in place of the block if it raises `ValueError` or `NotImplementedError`."""
        try:
            yield
        except (ValueError, NotImplementedError) as error:
            self.text(f"{what} left out: {error}.")

    def write(self, file: Path) -> Path:
        """Write the document to `file`, whole or not at all."""
        links = "".join(f'<a href="#part{i}">{escaped(text)}</a>' for i, text in enumerate(self.headings, 1))
        body = "\n".join([f"<nav>{links}</nav>", *self.parts])
        title = escaped(self.title)
        return write_page(file, "report.html", {"title": title, "heading": title, "body": body})
