"""The structure of the page: balanced, self-contained, in order, whatever the names hold."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import msgspec
import pytest

from edgewise.errors import ContractError
from edgewise.records.codec import decode, encode
from edgewise.records.run import Run
from edgewise.report.html import render

VOID = {"meta", "link", "br", "hr", "img", "input"}
ELEMENTS = VOID | {"html", "head", "title", "style", "body", "a", "header", "div", "p", "b", "span", "time", "h1", "h2"}
ELEMENTS |= {"h3", "dl", "dt", "dd", "nav", "main", "section", "table", "thead", "tbody", "tfoot", "tr", "th", "td"}
ELEMENTS |= {"figure", "figcaption", "ul", "li", "details", "summary", "code", "pre", "button", "footer", "script"}
ELEMENTS |= {"svg", "g", "text", "line", "rect", "circle", "path", "polyline"}
ELEMENTS -= {"img", "input", "hr", "br"}
SECTIONS = [
    "before-after",
    "latency",
    "candidates-plot",
    "ladder",
    "certificate",
    "layers",
    "done",
    "declined",
    "candidates",
    "model-data",
    "machine",
    "reproduce",
]


class Page(HTMLParser):
    """Collects what the tests ask about, and refuses what is not balanced or not expected."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.sections: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.inline: dict[str, str] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ELEMENTS, f"<{tag}> is not one of ours"
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        given = dict(attrs)
        if identity := given.get("id"):
            self.ids.append(identity)
            if tag == "section":
                self.sections.append(identity)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"style", "script"}:
            self.inline[self.open[-1]] = data
        else:
            self.text.append(data)


def test_the_page_is_balanced(any_run: Run) -> None:
    assert Page(render(any_run)).open == []


def test_nothing_is_loaded_from_outside(any_run: Run) -> None:
    page = Page(render(any_run))
    loads = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href", "formaction"}
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), f"<{tag} {name}> runs script"
        assert name != "style", "the content security policy refuses style attributes"
        if name in loads:
            assert value.startswith("#") or value == "data:,", f"<{tag} {name}={value}>"
    assert "url(" not in page.inline["style"]
    assert "@import" not in page.inline["style"]
    assert "fetch(" not in page.inline["script"]


def test_there_are_no_addresses_at_all(typical: Run) -> None:
    assert "http://" not in render(typical)
    assert "https://" not in render(typical)


def test_the_policy_allows_our_style_and_script_and_nothing_else(any_run: Run) -> None:
    page = Page(render(any_run))
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none';")
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.inline[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("name", ["style.css", "script.js"])
def test_what_is_written_into_the_page_cannot_end_its_element(name: str) -> None:
    assert "</" not in files("edgewise.report").joinpath("templates", name).read_text(encoding="utf-8")


def test_ids_are_unique_and_links_lead_somewhere(any_run: Run) -> None:
    page = Page(render(any_run))
    assert len(page.ids) == len(set(page.ids))
    targets = [value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert set(targets) <= set(page.ids)


def test_headings_never_skip_a_level(any_run: Run) -> None:
    headings = Page(render(any_run)).headings
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))


def test_the_sections_are_in_order(any_run: Run) -> None:
    assert Page(render(any_run)).sections == SECTIONS + (["notes"] if any_run.notes else [])


def test_a_typical_report_is_small(typical: Run) -> None:
    assert len(render(typical).encode()) < 200_000


def test_a_report_with_hundreds_of_declines_is_not_large(hostile: Run) -> None:
    assert len(render(hostile).encode()) < 400_000


def test_names_are_text_and_nothing_else(hostile: Run) -> None:
    # The parser above refuses every element and attribute that is not ours: here the names are there as text.
    text = " ".join(Page(render(hostile)).text)
    assert "<script>alert(1)</script>" in text
    assert "{{ 7*7 }}" in text
    assert "層" * 90 in text
    assert "\\u202egnp.exe" in text
    for invisible in ("\x00", "\x1b", "\u202e"):
        assert invisible not in text


def test_the_same_record_gives_the_same_page(typical: Run) -> None:
    assert render(typical) == render(decode(encode(typical), Run))


@pytest.mark.parametrize("chosen", [-1, 4])
def test_a_default_that_is_not_on_the_ladder_is_an_error(typical: Run, chosen: int) -> None:
    with pytest.raises(ContractError, match=r"resnet56\.onnx"):
        render(msgspec.structs.replace(typical, chosen=chosen))


def test_a_run_without_a_ladder_is_an_error(typical: Run) -> None:
    with pytest.raises(ContractError, match="0 rungs"):
        render(msgspec.structs.replace(typical, ladder=(), chosen=0))


def test_every_optional_part_may_be_missing(typical: Run) -> None:
    bare = tuple(
        msgspec.structs.replace(
            rung,
            layers=(),
            certificate=None,
            latency=msgspec.structs.replace(rung.latency, quantiles_us=(), rounds_us=()),
        )
        for rung in typical.ladder
    )
    machine = msgspec.structs.replace(typical.machine, governor=None, load=None, isa=(), packages={})
    run = msgspec.structs.replace(
        typical, ladder=bare, outcomes=(), changes=(), declines=(), notes=(), machine=machine, command="", verdict=""
    )
    text = " ".join(Page(render(run)).text)
    assert "The distributions were not recorded." in text
    assert "there is nothing to draw" in text
    assert "No certificate was made" in text
    assert "No layer costs were recorded for openvino int8-mse." in text
    assert "Nothing was declined." in text
    assert "not readable here" in text
