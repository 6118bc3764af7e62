"""Pages: one file that needs no other, in which nothing of the data becomes markup."""

import base64
import re

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from focal_det.report.page import Page

NASTY = "<script>alert(\"x\")</script> 'a' & b\x1b[31m\x00"
ESCAPED = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &#x27;a&#x27; &amp; b\\x1b[31m\\x00"


def write(page, folder):
    page.write(folder / "new" / "a.html")
    return (folder / "new" / "a.html").read_text(encoding="utf-8")


def make_figure(width=2):
    figure = Figure(figsize=(width, 1), dpi=50)
    figure.subplots().plot([0, 1])
    return figure


def test_no_text_becomes_markup(tmp_path):
    page = Page(NASTY)
    page.add_heading(NASTY)
    page.add_text(NASTY)
    page.add_table([NASTY], [[NASTY]], ["error"])
    page.add_figure(make_figure(), NASTY)
    text = write(page, tmp_path)
    # Title, h1, h2, p, th, td, alt and figcaption.
    assert text.count(ESCAPED) == 8
    assert "<script" not in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)


def test_newlines_of_texts_are_kept(tmp_path):
    page = Page("a")
    page.add_text("one\ntwo\n\nthree\x85four")
    text = write(page, tmp_path)
    assert "<p>one\ntwo\n\nthree four</p>" in text
    assert "white-space: pre-wrap" in text


def test_rows_have_their_classes(tmp_path):
    page = Page("a")
    page.add_table(["x", "y"], [["1", "2"], ["3", "4"]], ["warning", ""])
    page.add_table(["z"], [["5"]])
    text = write(page, tmp_path)
    assert '<tr class="warning"><td>1</td><td>2</td></tr>\n<tr><td>3</td><td>4</td></tr>' in text
    assert "<tr><th>z</th></tr>\n<tr><td>5</td></tr>" in text


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [
        ([["1"]], (), r"a row must have 2 cells, got \['1'\]"),
        ([["1", "2"]], ["fatal"], "must be in .*, got 'fatal'"),
        ([["1", "2"]], ["note", "note"], "one entry per row: 1 rows, got 2"),
    ],
)
def test_wrong_rows_are_refused(rows, classes, message):
    with pytest.raises(ValueError, match=message):
        Page("a").add_table(["x", "y"], rows, classes)


def test_figures_are_inside_the_page(tmp_path):
    page = Page("a")
    page.add_figure(make_figure(width=3), "a curve")
    text = write(page, tmp_path)
    (data,) = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="a curve">', text)
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (50, 150, 3)
    assert picture.std() > 1
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "new" / "a.html"
    page = Page("a")
    old = write(page, tmp_path)

    def fail(descriptor):
        raise OSError("no")

    monkeypatch.setattr("focal_det.files.os.fsync", fail)
    page.add_text("more")
    with pytest.raises(OSError):
        page.write(file)
    assert file.read_text() == old
    assert [x.name for x in file.parent.iterdir()] == ["a.html"]
