"""The registry of quantities, and the values that travel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sample_run import Write, segment_of

from rnndiag.errors import BadArgument, BadConfig
from rnndiag.store import tar
from rnndiag.store.judged import judged_steps
from rnndiag.store.measurement import Measurement
from rnndiag.store.quantities import FIXED_COORDINATES, QUANTITIES, Quantity, parse, register
from rnndiag.store.recording import Recording
from rnndiag.store.safe_text import printable
from rnndiag.store.text import from_json, plain, to_json


def test_every_quantity_says_what_it_means() -> None:
    assert len(QUANTITIES) > 50
    for name, quantity in QUANTITIES.items():
        assert quantity.name == name
        assert name == name.lower()
        assert quantity.meaning.endswith(".")
        assert quantity.unit
        assert quantity.scale in ("linear", "log")
        assert quantity.owner in ("layer", "model")
        assert len(set(quantity.dims)) == len(quantity.dims)
        assert (quantity.scale == "log") == quantity.meaning.startswith(("ln ", "Median ln "))


def test_a_table_is_read_as_it_stands() -> None:
    table = (
        "[a, model]\nx | - | 1 | log | sum\n    Two\n    lines.\ny | p q | m/s | linear\n    One."
    )
    assert parse(table) == [
        Quantity("x", (), "1", "Two lines.", "log", "model", "a", pool="sum"),
        Quantity("y", ("p", "q"), "m/s", "One.", "linear", "model", "a"),
    ]


def test_a_quantity_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        register(QUANTITIES["loss"])


def test_every_segment_carries_the_registry(write: Write) -> None:
    data = segment_of(write([0])).read_bytes()
    first = tar.header(data[:512], 0)
    assert first is not None
    facts = json.loads(data[first.start : first.start + first.size])
    assert facts["registry"]["credit_profile"] == QUANTITIES["credit_profile"].as_json()
    assert set(facts["registry"]) == set(QUANTITIES)
    assert facts["coordinates"]["stat"] == list(FIXED_COORDINATES["stat"])
    for key in (
        "format",
        "version",
        "run_id",
        "rank",
        "world_size",
        "start",
        "started",
        "resumed_from_step",
    ):
        assert key in facts
    assert (facts["format"], facts["version"]) == ("rnndiag", [1, 0])


def test_run_json_is_a_copy_for_people(write: Write) -> None:
    run = write([0, 10], provenance={"seed": 1})
    facts = json.loads((run / "run.json").read_text())
    assert facts["provenance"] == {"seed": 1}
    assert (facts["end"]["count"], facts["end"]["last_step"]) == (2, 10)
    assert "registry" not in facts
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []


def test_a_measurement_is_held_to_its_dims() -> None:
    good = Measurement.of("adjoint_norm", np.zeros((3, 4)), "l")
    assert good.coordinates == {"stat": ("mean", "q05", "q50", "q95")}
    assert repr(good) == "<adjoint_norm of l: time 3, stat 4; loss/state, linear>"
    assert repr(Measurement.of("loss", 1.0)) == "<loss of model: one number; loss, linear>"
    with pytest.raises(BadArgument, match="not a registered quantity"):
        Measurement.of("nonsense", 1.0)
    with pytest.raises(BadArgument, match=r"shape .* but dims"):
        Measurement.of("adjoint_norm", np.zeros(3), "l")
    with pytest.raises(BadArgument, match="2 labels for dim 'parameter'"):
        Measurement.of("gradient_norm", np.zeros(3), "l", {"parameter": ("a", "b")})
    with pytest.raises(BadArgument, match="one distinct name"):
        Measurement("q", np.zeros((2, 2)), ("a", "a"))


def test_positions_are_labels_that_are_numbers_or_counts() -> None:
    m = Measurement(
        "q",
        np.zeros((3, 2)),
        ("lag", "gate"),
        coordinates={"lag": ("0", "1", "4"), "gate": ("i", "f")},
    )
    assert m.positions("lag").tolist() == [0, 1, 4]
    assert m.positions("gate").tolist() == [0, 1]


def test_a_recording_is_held_to_its_facts() -> None:
    with pytest.raises(BadArgument, match="step -1"):
        Recording(-1)
    with pytest.raises(BadArgument, match="verdict 'fine'"):
        Recording(0, verdict="fine")  # type: ignore[arg-type]
    found = Recording(
        0, measurements=(Measurement.of("loss", 1.0), Measurement.of("kaplan_yorke", 1.0, "l"))
    )
    assert (found.layers, found.quantities) == (("l",), ("loss", "kaplan_yorke"))
    assert "loss" in found
    assert ("kaplan_yorke", "l") in found
    assert found.get("loss", "l") is None
    assert repr(found) == "<recording of step 0 (train), unverified: 2 measurements of 1 layers>"


@pytest.mark.parametrize(
    ("window", "at_least", "expected"),
    [
        ("last 20%", 5, range(80, 100)),
        ("last 10", 5, range(90, 100)),
        ("last 2", 5, range(95, 100)),
        ("last 2", 1, range(98, 100)),
        ("all", 5, range(100)),
        ("last 0.5%", 0, range(99, 100)),
        ("last 100 %", 5, range(100)),
    ],
)
def test_which_recordings_are_judged(window: str, at_least: int, expected: range) -> None:
    assert judged_steps(range(100), window, at_least).tolist() == [*expected]


def test_few_recordings_are_all_judged() -> None:
    assert judged_steps([7, 9], "last 20%").tolist() == [7, 9]
    assert judged_steps([], "last 20%").tolist() == []
    for wrong in ("first 3", "last", "last 0", "last 120%", "20%"):
        with pytest.raises(BadConfig, match="not understood"):
            judged_steps([1], wrong)


def test_anything_becomes_plain_json() -> None:
    class Odd:
        def __repr__(self) -> str:
            return "<odd>"

    given = {
        "a": np.float32(1.5), "b": float("nan"), "c": [np.int64(3), (1, 2)], "d": Odd(), 5: {1}, "e": 10**30,
        "f": np.arange(2), "g": np.bool_(True), "h": float("-inf"), "i": b"raw",
    }  # fmt: skip
    told = json.loads(to_json(given))
    assert told == {
        "a": 1.5, "b": "nan", "c": [3, [1, 2]], "d": "<odd>", "5": [1], "e": str(10**30), "f": [0, 1], "g": True,
        "h": "-inf", "i": "b'raw'",
    }  # fmt: skip
    endless: list[object] = []
    endless.append(endless)
    assert isinstance(plain(endless), list)


def test_json_of_strangers_is_bounded() -> None:
    for text in (
        b"[1]",
        b"{",
        b'{"a": ' + b"1" * 50 + b"}",
        b'{"a":' * 100_000,
        b"\xff",
        b'"x"',
        b" " * (2 << 20),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            from_json(text)


def test_text_for_the_screen_holds_no_codes() -> None:
    assert printable("a\x1b[31mb\u202ec\nd\ud800é") == "a\\x1b[31mb\\u202ec\\nd\\ud800é"
