"""The page in a headless Chromium: offline, silent, exact under the pointer, and readable for everyone."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from webdriver import Browser

from rnndiag.report.compare_page import comparable, compare_page
from rnndiag.report.context import Context
from rnndiag.report.figure_data import Matrix
from rnndiag.report.figures import FIGURES
from rnndiag.report.page import write_page, write_text

pytestmark = pytest.mark.browser
AXE = Path(__file__).parent / "axe" / "axe.min.js"
# what Jenkins sends with every page that a build archived
STRICT = "sandbox; default-src 'none'; img-src 'self'; style-src 'self';"


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    found = Browser(chromium)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _as_new(browser: Browser) -> None:
    browser.scripts(on=True)
    browser.width(0)
    browser.prefer("light")


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory, context_of: Callable[[str], Context]
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {
        case: write_page(context_of(case), folder / f"{case}.html")
        for case in ("full", "not_finite", "nothing")
    }
    two = comparable([context_of("full"), context_of("zeros")])
    found["compared"] = write_text(compare_page(two), folder / "compared.html")
    return found


ALL = ("full", "not_finite", "nothing", "compared")


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_asked_for_and_nothing_is_complained_about(
    name: str, browser: Browser, pages: dict[str, Path]
) -> None:
    address = pages[name].as_uri()
    browser.open(address)
    asked = [url for url in browser.requests() if not url.startswith("data:")]
    assert asked == [address]
    assert browser.logs("browser") == []


def at_cell(browser: Browser, figure: str, matrix: Matrix, row: int, column: int) -> str:
    """Point at the middle of a cell of the shown matrix; what the page then says."""
    box = browser.run(
        f"""const image = [...document.querySelectorAll('#{figure} image.matrix')]
          .find((one) => one.getAttribute('visibility') !== 'hidden');
        image.scrollIntoView({{block: 'center'}});
        const box = image.getBoundingClientRect();
        return [box.left, box.top, box.width, box.height];"""
    )
    rows, columns = matrix.values.shape
    x = box[0] + (column + 0.5) / columns * box[2]
    y = box[1] + (rows - row - 0.5) / rows * box[3]
    browser.run(f"document.querySelector('#{figure} .probe').textContent = ''")
    browser.point(box[0] - 5, y)
    browser.point(x, y)
    for _ in range(100):
        said: str = browser.run(f"return document.querySelector('#{figure} .probe').textContent")
        if said.strip():
            return said
        time.sleep(0.02)
    raise AssertionError("the page says nothing about the cell")


def test_the_value_under_the_pointer_is_the_array_s(
    browser: Browser, pages: dict[str, Path], context_of: Callable[[str], Context]
) -> None:
    panel = FIGURES["F2"].make(context_of("full")).panels[0]
    matrix = panel.matrices[0]
    browser.open(pages["full"].as_uri())
    for row, column in ((0, 0), (3, 1), (11, 2)):
        said = at_cell(browser, "F2", matrix, row, column)
        found = re.fullmatch(r"lag (\d+), training step (\d+): 10\^(-?[\d.]+)", said)
        assert found, said
        assert (int(found[1]), int(found[2])) == (row, 10 * column)
        step = (matrix.high - matrix.low) / 251
        assert float(found[3]) == pytest.approx(matrix.values[row, column], abs=0.05 + step)


def test_the_slider_chooses_the_matrix_that_the_pointer_reads(
    browser: Browser, pages: dict[str, Path], context_of: Callable[[str], Context]
) -> None:
    matrices = FIGURES["F3"].make(context_of("full")).panels[0].matrices
    browser.open(pages["full"].as_uri())
    shown = "return document.querySelector('#F3 output').textContent"
    assert browser.run(shown) == "step 20"
    left = "\ue012"
    for k in (1, 0):
        browser.keys("#F3 input", left)
        assert browser.run(shown) == matrices[k].frame
        seen = browser.run(
            "return [...document.querySelectorAll('#F3 image.matrix')]"
            ".map((one) => one.getAttribute('visibility') !== 'hidden')"
        )
        assert seen == [j == k for j in range(3)]
        said = at_cell(browser, "F3", matrices[k], 11, 2)
        value = re.fullmatch(r"loss time u 11, state time s 2: 10\^(-?[\d.]+)", said)
        assert value, said
        step = (matrices[k].high - matrices[k].low) / 251
        assert float(value[1]) == pytest.approx(matrices[k].values[11, 2], abs=0.05 + step)
    assert at_cell(browser, "F3", matrices[0], 2, 11).endswith("no path, or not recorded")


def test_what_is_not_finite_is_said_under_the_pointer(
    browser: Browser, pages: dict[str, Path], context_of: Callable[[str], Context]
) -> None:
    matrix = FIGURES["F2"].make(context_of("not_finite")).panels[0].matrices[0]
    browser.open(pages["not_finite"].as_uri())
    assert at_cell(browser, "F2", matrix, 5, 1) == "lag 5, training step 10: not finite"


def test_without_scripts_words_tables_curves_and_matrices_are_there(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.scripts(on=False)
    browser.open(pages["full"].as_uri())
    tree = browser.cdp("DOM.getDocument", depth=-1)
    source = browser.cdp("DOM.getOuterHTML", nodeId=tree["root"]["nodeId"])["outerHTML"]
    assert "How far back does the gradient reach?" in source
    assert ">window in use: " in source
    assert "the window in use leaves out" in source
    assert source.count("<polyline") > 20
    assert source.count("<table") > 8
    images = browser.cdp("DOM.querySelectorAll", nodeId=tree["root"]["nodeId"], selector="image")
    assert len(images["nodeIds"]) > 4
    assert browser.logs("browser") == []


class Strictly(BaseHTTPRequestHandler):
    """Serves one page the way Jenkins does."""

    def __init__(self, page: bytes, *rest: Any) -> None:
        self.page = page
        super().__init__(*rest)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Security-Policy", STRICT)
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_a_strict_policy_leaves_words_tables_and_curves_in_their_colours(
    browser: Browser, pages: dict[str, Path]
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Strictly, pages["full"].read_bytes()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        browser.open(f"http://127.0.0.1:{server.server_port}/")
        drawn = browser.cdp("DOM.getDocument", depth=-1)["root"]["nodeId"]
        style = browser.cdp("DOM.querySelector", nodeId=drawn, selector="#F1 polyline")["nodeId"]
        browser.cdp("DOM.enable")
        browser.cdp("CSS.enable")
        computed = browser.cdp("CSS.getComputedStyleForNode", nodeId=style)["computedStyle"]
        values = {entry["name"]: entry["value"] for entry in computed}
        assert values["stroke"] == "rgb(0, 114, 178)"
        assert values["fill"] == "none"
        html = browser.cdp("DOM.getOuterHTML", nodeId=drawn)["outerHTML"]
        assert "style=" not in html
        assert len(re.findall("<table", html)) > 8
    finally:
        server.shutdown()
        server.server_close()


def test_dark_and_light_differ_and_print_is_light(browser: Browser, pages: dict[str, Path]) -> None:
    colour = (
        "const of = (s, p) => getComputedStyle(document.querySelector(s))[p];"
        "return [of('body', 'backgroundColor'), of('#F1 polyline', 'stroke'), of('#F1 text', 'fill')]"
    )
    browser.open(pages["full"].as_uri())
    assert browser.run(colour) == ["rgb(255, 255, 255)", "rgb(0, 114, 178)", "rgb(84, 91, 102)"]
    browser.prefer("dark")
    assert browser.run(colour) == ["rgb(20, 23, 28)", "rgb(86, 180, 233)", "rgb(168, 176, 188)"]
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.cdp("Emulation.setEmulatedMedia", media="print", features=features)
    assert browser.run(colour)[0] == "rgb(255, 255, 255)"
    browser.cdp("Emulation.setEmulatedMedia", media="", features=[])


def test_it_prints(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"].as_uri())
    pdf = browser.print()
    assert pdf.startswith(b"%PDF")
    sheets = len(re.findall(rb"/Type /Page\b", pdf))
    assert 3 <= sheets <= 20
    assert len(pdf) > 30_000


@pytest.mark.parametrize("name", ALL)
def test_360_pixels_need_no_sideways_scrolling(
    name: str, browser: Browser, pages: dict[str, Path]
) -> None:
    browser.width(360)
    browser.open(pages[name].as_uri())
    assert browser.run("return document.documentElement.scrollWidth") <= 360
    wide = browser.run(
        "return [...document.querySelectorAll('svg, p, h1, h2, dl, nav, figure')]"
        ".filter((one) => !one.closest('.scroll') && one.getBoundingClientRect().right > 361)"
        ".map((one) => one.outerHTML.slice(0, 80))"
    )
    assert wide == []


@pytest.mark.parametrize("width", [400, 1200])
def test_no_label_of_a_picture_is_cut_or_lies_over_another(
    width: int, browser: Browser, pages: dict[str, Path]
) -> None:
    browser.width(width)
    browser.open(pages["full"].as_uri())
    found = browser.run(
        """const found = [];
        for (const svg of document.querySelectorAll('figure .panel > svg')) {
          const all = [...svg.querySelectorAll('text')]
            .map((text) => [text.textContent, text.getBoundingClientRect()]).filter((one) => one[1].width);
          const edge = svg.getBoundingClientRect();
          all.forEach(([words, a], i) => {
            if (a.left < edge.left - 1 || a.right > edge.right + 1) found.push(['cut', words]);
            for (const [other, b] of all.slice(0, i))
              if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
                  Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4) found.push([words, other]);
          });
        }
        return found;"""
    )
    assert found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ALL)
def test_axe_finds_nothing_serious(
    name: str, scheme: str, browser: Browser, pages: dict[str, Path]
) -> None:
    browser.prefer(scheme)
    browser.open(pages[name].as_uri())
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.run(AXE.read_text(encoding="utf-8"))
    found, looked_at = browser.run_async(
        "const done = arguments[arguments.length - 1];"
        "axe.run({resultTypes: ['violations']}).then((all) => done([all.violations.map("
        "(one) => [one.impact, one.id, one.nodes.slice(0, 3).map((n) => n.html.slice(0, 120))]),"
        "all.passes.length]))"
    )
    assert [one for one in found if one[0] in ("serious", "critical")] == []
    assert looked_at > 10, "axe looked at nothing"


def test_the_first_number_of_the_page_s_json_is_the_page_s(
    browser: Browser, pages: dict[str, Path], context_of: Callable[[str], Context]
) -> None:
    browser.open(pages["full"].as_uri())
    told = browser.run("return JSON.parse(document.getElementById('numbers').textContent)")
    context = context_of("full")
    assert told["verdict"]["word"] == context.verdict.word
    assert told["recordings"] == 3
    value = float(told["headline"][0]["value"].removesuffix(" steps"))
    reach = context.reach(context.lead)
    assert reach is not None
    assert value == pytest.approx(float(np.round(reach, 2)), rel=1e-2)
