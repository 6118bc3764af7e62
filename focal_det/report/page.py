"""A page of text, tables and figures in one HTML file that needs no other file."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from focal_det.files import open_to_replace
from focal_det.messages import to_line

ROW_CLASSES = ("error", "warning", "note")
_STYLE = """\
body { font: 15px sans-serif; max-width: 1300px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse }
th, td { text-align: left; vertical-align: top; padding: .3em .8em; border-bottom: 1px solid #ddd }
p, td { white-space: pre-wrap; overflow-wrap: anywhere }
.error { color: #b00 }
.warning { color: #a60 }
.note { color: #067 }
figure { margin: 1.5em 0 }
figcaption { color: #555 }
img { max-width: 100% }
"""


class Page:
    """Text, tables and figures one below the other, written as one HTML file.

    Every text is escaped: names of classes and files come from other people's data and may hold
    markup or control characters.

    Args:
        title: of the window, and the heading at the top.
    """

    def __init__(self, title: str) -> None:
        self._title = _escape(title)
        self._parts = [f"<h1>{self._title}</h1>"]

    def add_heading(self, text: str) -> None:
        """A heading over what is added next."""
        self._parts.append(f"<h2>{_escape(text)}</h2>")

    def add_text(self, text: str) -> None:
        """A paragraph; newlines are kept."""
        self._parts.append(f"<p>{_escape(text)}</p>")

    def add_table(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], row_classes: Sequence[str] = ()
    ) -> None:
        """A table with one line of column names.

        Args:
            head: C column names.
            rows: C cells each; newlines are kept.
            row_classes: for each row, "error", "warning" or "note" to colour it, or "".

        Raises:
            ValueError: a wrong number of cells or row classes, or an unknown row class.
        """
        row_classes = row_classes or [""] * len(rows)
        if len(row_classes) != len(rows):
            raise ValueError(
                f"row_classes must have one entry per row: {len(rows)} rows, got {len(row_classes)}"
            )
        lines = [_make_row("th", head, "")]
        for cells, row_class in zip(rows, row_classes):
            if len(cells) != len(head):
                raise ValueError(f"a row must have {len(head)} cells, got {list(cells)}")
            lines.append(_make_row("td", cells, row_class))
        self._parts.append("\n".join(["<table>", *lines, "</table>"]))

    def add_figure(self, figure: Figure, caption: str) -> None:
        """A figure, stored in the page itself, with a caption that is also its alt text."""
        # A picture in another file would be lost when the page is sent or moved.
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        data = base64.b64encode(picture.getvalue()).decode("ascii")
        text = _escape(caption)
        self._parts.append(
            f'<figure>\n<img src="data:image/png;base64,{data}" alt="{text}">\n'
            f"<figcaption>{text}</figcaption>\n</figure>"
        )

    def write(self, file: Path) -> None:
        """Write the page; an existing file is replaced only when the page is complete.

        Raises:
            OSError: it cannot be written.
        """
        body = "\n".join(self._parts)
        text = (
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            f"<title>{self._title}</title>\n<style>\n{_STYLE}</style>\n{body}\n</html>\n"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        with open_to_replace(file) as stream:
            stream.write(text.encode("utf-8"))


def _make_row(tag: str, cells: Sequence[str], row_class: str) -> str:
    if row_class and row_class not in ROW_CLASSES:
        raise ValueError(f"the class of a row must be in {ROW_CLASSES}, got {row_class!r}")
    attribute = ""
    if row_class:
        attribute = f' class="{row_class}"'
    content = "".join(f"<{tag}>{_escape(cell)}</{tag}>" for cell in cells)
    return f"<tr{attribute}>{content}</tr>"


def _escape(text: str) -> str:
    """The text as HTML, with control characters as escapes; newlines are kept."""
    # Split at newlines alone: `to_line` turns the other line ends of str.splitlines into spaces.
    return "\n".join(html.escape(to_line(line)) for line in text.split("\n"))
