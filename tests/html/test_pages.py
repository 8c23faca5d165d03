"""Pages escape whatever they are given, and ask the network for nothing."""

import zlib
from base64 import b64decode

import pytest
from browser import fetched_by

from ul2.html import pages
from ul2.html.buckets import bucketed
from ul2.html.charts import Line, line_chart
from ul2.html.elements import Html, tag
from ul2.html.images import png_url

HOSTILE = "</script><script>alert('x')</script>\" onload=\"a\x1b[2J\u202e\ud800 & <b>"


def test_text_is_escaped_wherever_it_stands():
    element = tag("p", HOSTILE, [HOSTILE], title=HOSTILE, data_x=HOSTILE)
    assert element.count("<") == 2
    assert element.count('"') == 4
    assert "\x1b" not in element
    assert "\u202e" not in element
    element.encode("utf-8")


def test_elements_inside_elements_are_not_escaped_again():
    assert tag("p", "a < b", tag("b", "&"), None, class_="x") == (
        '<p class="x">a &lt; b<b>&amp;</b></p>'
    )
    assert tag("img", src="x", alt=None) == '<img src="x">'


def test_a_chart_cannot_be_left_by_its_labels():
    line = Line(HOSTILE, 0, bucketed([1, 2], [1.0, 2.0], 9))
    chart = line_chart(HOSTILE, HOSTILE, [line, line])
    assert chart.lower().count("<script") == 1
    assert chart.lower().count("</script") == 1
    assert "<b>" not in chart
    chart.encode("utf-8")


def test_a_page_fetches_nothing_and_forbids_it():
    page = pages.page("t", "head", [pages.Section("a", "A", tag("p", "https://x.org"))])
    assert fetched_by(page) == []
    assert "default-src 'none'" in page
    linked = pages.page("t", tag("a", "x", href="https://x.org"), [])
    assert fetched_by(linked) == ["https://x.org"]


def test_a_page_is_written_whole_or_refused_in_a_line(tmp_path):
    pages.write(tmp_path / "a.html", "x")
    assert [file.name for file in tmp_path.iterdir()] == ["a.html"]
    with pytest.raises(ValueError, match=r"cannot write .*b\.html: No such"):
        pages.write(tmp_path / "none" / "b.html", "x")


def test_an_image_holds_its_pixels():
    url = png_url([b"\0\1\2", b"\2\1\0"], ["#ff0000", "#0000ff"])
    png = b64decode(url.removeprefix("data:image/png;base64,"))
    assert png[16:24] == (3).to_bytes(4, "big") + (2).to_bytes(4, "big")
    at = png.index(b"IDAT") + 4
    assert zlib.decompress(png[at : png.index(b"IEND") - 8]) == b"\0\0\1\2\0\2\1\0"
    assert b"\0\0\0\xff\0\0\0\0\xff" in png


def test_html_is_text():
    assert isinstance(tag("p"), Html)
    assert f"{tag('p', '<')}" == "<p>&lt;</p>"
