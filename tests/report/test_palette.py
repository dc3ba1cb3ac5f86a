"""Colours that can be told apart from the page, and pictures that are the data."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rnndiag.report.decimate import extent, thin_line, thin_matrix
from rnndiag.report.figure_data import Axis, Matrix
from rnndiag.report.palette import (
    BELOW,
    FIRST,
    FRAME,
    NO_PATH,
    NOT_FINITE,
    PAGE,
    QUIET,
    TEXT,
    TONES,
    ZERO,
    colours,
    indices,
    png,
)
from rnndiag.report.ticks import place, ticks


def value_of(matrix: Matrix, index: int) -> float:
    """The value at the middle of the range that a palette index covers, as the script of the page reads it."""
    return matrix.low + (index - FIRST) / (255 - FIRST) * (matrix.high - matrix.low)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_black_on_white_has_the_contrast_of_the_definition() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_and_marks_stand_out_from_the_page(theme: int) -> None:
    for text in (TEXT, QUIET):
        assert contrast(text[theme], PAGE[theme]) >= 4.5
    for name, tone in TONES.items():
        # marks have words in their own colour, so they need the contrast of text
        assert contrast(tone[theme], PAGE[theme]) >= 4.5, name
    assert contrast(FRAME[theme], PAGE[theme]) >= 3


def test_sizes_grow_lighter_and_differences_grow_darker_from_the_middle() -> None:
    def light(table: np.ndarray) -> np.ndarray:
        return np.array([luminance(f"#{bytes(row).hex()}") for row in table[4:]])

    assert (np.diff(light(colours())) > -2e-3).all()
    diverging = light(colours(True))
    middle = len(diverging) // 2
    assert diverging[middle] > 5 * max(diverging[0], diverging[-1])


@given(st.floats(-16, 0), st.floats(-16, 0))
def test_an_index_says_the_value_to_half_a_step(value: float, other: float) -> None:
    matrix = Matrix(np.array([[value, other]]), -16.0, 0.0)
    for index, true in zip(indices(matrix)[0], (value, other), strict=True):
        assert value_of(matrix, int(index)) == pytest.approx(true, abs=0.5 * 16 / 251 + 1e-9)


def test_what_is_no_number_has_an_index_of_its_own() -> None:
    matrix = Matrix(np.array([[np.nan, -np.inf, np.inf, -20.0, 5.0]]), -16.0, 0.0)
    assert indices(matrix).tolist() == [[NO_PATH, ZERO, NOT_FINITE, BELOW, 255]]


def test_the_png_holds_the_indices() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = png(picture, colours())
    at, chunks = 8, {}
    while at < len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        (crc,) = struct.unpack(">I", content[at + 8 + size : at + 12 + size])
        assert crc == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + size
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (4, 3, 8, 3, 0, 0, 0)
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(3, 5)
    assert (rows[:, 1:] == picture).all()


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 2**32 - 1))
def test_thin_matrices_keep_the_largest_of_each_block(rows: int, columns: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, columns))
    found, (tall, wide) = thin_matrix(values)
    assert max(found.shape) <= 256
    assert found.max() == values.max()
    assert found[0, 0] == values[:tall, :wide].max()
    assert found[-1, -1] == values[tall * (len(found) - 1) :, wide * (found.shape[1] - 1) :].max()
    low, high = extent(rows, tall)
    assert (low, high) == (-0.5, len(found) * tall - 0.5)


@given(st.integers(1, 20_000), st.integers(0, 2**32 - 1), st.booleans())
def test_thin_lines_keep_extremes_ends_and_gaps(count: int, seed: int, gap: bool) -> None:
    y = np.random.default_rng(seed).normal(size=count)
    if gap:
        y[count // 2] = np.nan
    x, found = thin_line(np.arange(count), y, 500)
    assert len(x) <= 5 * 501 or len(x) == count
    assert (np.diff(x) > 0).all()
    if np.isfinite(y).any():
        assert np.nanmax(found) == np.nanmax(y)
        assert np.nanmin(found) == np.nanmin(y)
    assert np.isnan(found).any() == np.isnan(y).any()
    assert (x[0], x[-1]) == (0, count - 1)


@given(
    st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.sampled_from(["linear", "log10", "log2"]),
    st.integers(3, 9),
)  # fmt: skip
@example(135357.0, 44.0, "linear", 6)
@example(1e-6, 1.93e-05, "log10", 3)
@example(-459843.1902569828, 1.007e-06, "linear", 6)
def test_ticks_lie_on_their_axis_and_are_few(
    low: float, span: float, scale: str, most: int
) -> None:
    if scale != "linear":
        low = abs(low) % 10 + 1e-6
    axis = Axis("x", low, low + span, scale)  # type: ignore[arg-type]
    found = ticks(axis, most)
    assert len(found) <= most + 1
    assert len({word for _, word in found}) == len(found)
    shares = place(axis, np.array([value for value, _ in found]))
    assert (shares >= -1e-6).all()
    assert (shares <= 1 + 1e-6).all()
