"""The committed gallery: figures computed again from the committed runs, pages as this version writes them."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reports.entries import ENTRIES, Entry
from reports.pages import HERE, context_of, figures_of, index
from rnndiag.report.context import Context
from rnndiag.report.page import page
from rnndiag.stats.headline import run_reach

NAMES = {entry.name: entry for entry in ENTRIES}


@cache
def context(name: str) -> Context:
    return context_of(NAMES[name])


def near(one: Any, other: Any) -> bool:
    """Equal but for rounding of the last of the four digits that are kept."""
    if isinstance(one, float | int) and isinstance(other, float | int):
        return bool(np.isclose(one, other, rtol=2e-3, atol=1e-30))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(near, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(near(one[key], other[key]) for key in one)
    return bool(one == other)


def unpacked(found: re.Match[str]) -> str:
    """A PNG as the sum of its pixels' bytes: zlib may pack the same pixels differently elsewhere."""
    content, at, pixels = base64.b64decode(found[1]), 8, b""
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        if content[at + 4 : at + 8] == b"IDAT":
            pixels = zlib.decompress(content[at + 8 : at + 8 + size])
        at += 12 + size
    return f"pixels {len(pixels)} {zlib.crc32(pixels)}"


def comparable(text: str) -> str:
    """Pictures by their pixels, and numbers of many digits without their last ones, which numpy's version decides."""
    text = re.sub(r"data:image/png;base64,([\w+/=]+)", unpacked, text)
    return re.sub(r"-?\d+\.\d{9,}(e[-+]?\d+)?", lambda found: f"{float(found[0]):.9g}", text)


@pytest.mark.parametrize("name", NAMES)
def test_figures_come_out_of_the_run_as_committed(name: str) -> None:
    committed = json.loads((HERE / name / "figures.json").read_text(encoding="utf-8"))
    assert near(json.loads(figures_of(context(name))), committed)


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_page_is_what_this_version_writes(name: str) -> None:
    committed = (HERE / name / "report.html").read_text(encoding="utf-8")
    assert comparable(page(context(name))) == comparable(committed)


@pytest.mark.parametrize("name", NAMES)
def test_every_recording_can_be_read_and_is_small(name: str) -> None:
    run = context(name).run
    assert run.verify() == ()
    assert run.size < 310_000
    assert len((HERE / name / "report.html").read_bytes()) < 300_000
    assert run.status.word == "finished"


def test_the_index_lists_every_run_with_its_verdict() -> None:
    text = (HERE / "index.html").read_text(encoding="utf-8")
    assert text == index([(entry, context(entry.name)) for entry in ENTRIES])
    for link in re.findall(r'href="([^"]+)"', text):
        assert (HERE / link).is_file()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_nothing_of_the_machine_is_committed(entry: Entry) -> None:
    text = (HERE / entry.name / "report.html").read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert str(HERE.parent) not in text


def test_the_gallery_shows_what_it_says() -> None:
    """Each run is there for a reason, and the numbers must bear it out."""
    reach = {name: float(run_reach(context(name).run)) for name in ("rnn-forgets", "irnn")}
    assert reach["rnn-forgets"] < 0.5 * reach["irnn"]
    assert any("reverse" in layer for layer in context("bidirectional").run.layers)
    assert len(context("seq2seq").run.layers) >= 2
    too_short = context("truncated-too-short")
    used = too_short.last("window_in_use", "model")
    assert used is not None
    assert float(used.values) == 5
    told = too_short.run.last.notes["cause"]
    unreached = [layer for layer, why in told.items() if "No gradient" in why["sentence"]]
    # the answer's gradient ends at the last seam: 15 of 20 steps get none
    assert len(unreached) == 3
    for name, k in (("truncated-too-short", 5), ("seam", 8)):
        (layer,) = context(name).run.layers_of("seam_bias")
        found = context(name).advice(layer)
        assert found is not None
        assert f"your chunks of {k} are off by" in found.sentence
        assert float(context(name).run["seam_bias", layer].values[-1]) > 0.01
    assert context("explodes").verdict.word.endswith(": EXPLODING")
