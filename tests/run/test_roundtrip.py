"""What is written is what is read: every dtype, shape, bit pattern and name."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from rnndiag.errors import BadArgument
from rnndiag.run.run import open_run
from rnndiag.store import npz, stored
from rnndiag.store.limits import JSON_BYTES
from rnndiag.store.measurement import STORED_DTYPES, Measurement, narrowed
from rnndiag.store.quantities import MODEL
from rnndiag.store.recording import Recording
from rnndiag.store.writer import RunWriter

HOSTILE_NAMES = (
    "..",
    "../../etc/passwd",
    "/abs",
    "a@b",
    "%41",
    "meta.json",
    "labels.json",
    "",
    " ",
    "new\nline",
    "\x1b[2J",
    "\u202e\u0000",
    "\ud800",
    "C:\\x",
    "ünï–代码",
    "x" * 500,
)
NAMES = st.one_of(st.sampled_from(HOSTILE_NAMES), st.text(max_size=12))
DTYPES = sorted(STORED_DTYPES, key=str)


def sees_nothing(name: str, why: str) -> None:
    raise AssertionError(f"{name}: {why}")


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Arrays of any stored dtype with any bits: NaN payloads, subnormals, negative zero."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(
        st.one_of(st.just(()), array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=4))
    )
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8)
    if dtype.kind == "b":
        raw = raw & 1
    return raw.view(dtype).reshape(shape) if count else np.zeros(shape, dtype)


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    values = draw(arrays())
    dims = draw(st.lists(NAMES, min_size=values.ndim, max_size=values.ndim, unique=True))
    labels = {
        dim: tuple(draw(st.lists(NAMES, min_size=size, max_size=size)))
        for dim, size in zip(dims, values.shape, strict=True)
        if draw(st.booleans())
    }
    scale: Any = draw(st.sampled_from(["linear", "log"]))
    return Measurement(draw(NAMES), values, tuple(dims), draw(NAMES), scale, draw(NAMES), labels)


def assert_same(one: Measurement, other: Measurement) -> None:
    for field in ("name", "dims", "unit", "scale", "layer", "coordinates"):
        assert getattr(one, field) == getattr(other, field)
    assert one.values.dtype == other.values.dtype
    assert one.values.shape == other.values.shape
    assert one.values.tobytes() == other.values.tobytes()


RECORDINGS = st.builds(
    Recording,
    step=st.integers(0, 2**63 - 1),
    phase=st.sampled_from(["train", "val/0", "\x1b[0m", "é"]),
    time=st.floats(0, 1e11),
    epoch=st.none() | st.integers(0, 10**6),
    batch=st.none() | st.integers(0, 10**6),
    verdict=st.sampled_from(["exact", "inexact", "unverified"]),
    reasons=st.dictionaries(NAMES, NAMES, max_size=3),
    notes=st.dictionaries(
        NAMES,
        st.recursive(
            st.none() | st.booleans() | st.integers(-(10**9), 10**9) | NAMES, st.lists, max_leaves=4
        ),
        max_size=3,
    ),
    measurements=st.lists(measurements(), max_size=4, unique_by=lambda m: (m.name, m.layer)).map(
        tuple
    ),
)


@given(RECORDINGS)
@example(
    Recording(0, measurements=(Measurement("..", np.zeros((0, 3), "f2"), ("a", "b"), layer="/"),))
)
@example(Recording(2**63 - 1, measurements=(Measurement("x", np.array(np.nan), layer="\ud800"),)))
def test_packed_is_unpacked(recording: Recording) -> None:
    data = stored.pack(recording)
    found = stored.unpack(data, stored.Decoder({}, {}), 0, sees_nothing)
    for field in ("step", "phase", "time", "epoch", "batch", "verdict", "reasons", "notes"):
        assert getattr(found, field) == getattr(recording, field)
    for one, other in zip(recording.measurements, found.measurements, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_through_the_file(tmp_path: Path, dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    shapes: list[tuple[int, ...]] = [(), (0,), (7,), (3, 4), (2, 0, 5), (2, 1, 2, 1, 2, 1, 2, 1)]
    made = []
    for at, shape in enumerate(shapes):
        raw = rng.integers(0, 2 if dtype.kind == "b" else 256, (*shape, dtype.itemsize), np.uint8)
        values = raw.view(dtype).reshape(shape)
        made.append(Measurement(f"q{at}", values, tuple(f"d{n}" for n in range(len(shape)))))
    fortran = Measurement("fortran", np.asfortranarray(made[3].values), ("a", "b"))
    strided = Measurement("strided", made[3].values[::2, ::-1], ("a", "b"))
    with RunWriter(tmp_path / "run") as writer:
        assert writer.append(Recording(3, measurements=(*made, fortran, strided)))
    run = open_run(tmp_path / "run")
    for one, other in zip((*made, fortran, strided), run.last.measurements, strict=True):
        assert_same(one, other)
    assert run.verify() == ()
    series = run["q3"]
    assert series.values[0].tobytes() == made[3].values.tobytes()
    assert (series.dims, series.layer) == (("step", "d0", "d1"), MODEL)


def test_big_endian_arrays_keep_their_values(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 3e-300], ">f8")
    with RunWriter(tmp_path / "run") as writer:
        assert writer.append(Recording(0, measurements=(Measurement("q", values, ("n",)),)))
    found = open_run(tmp_path / "run").last["q"].values
    assert found.dtype == np.dtype("<f8")
    assert np.array_equal(found, values)


def test_numpy_and_tar_read_it_without_rnndiag(tmp_path: Path) -> None:
    values = np.arange(6.0).reshape(2, 3)
    with RunWriter(tmp_path / "run") as writer:
        made = (Measurement("q/1", values, ("a", "b")), Measurement("loss", np.float32(2)))
        assert writer.append(Recording(7, measurements=made))
        (segment,) = (tmp_path / "run" / "recordings").iterdir()
        code = f"import tarfile; print([m.name for m in tarfile.open({str(segment)!r})])"
        live = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
    assert "step-000000000007-train.npz" in live.stdout
    import tarfile

    with tarfile.open(segment) as archive:
        names = archive.getnames()
        member = archive.extractfile("step-000000000007-train.npz")
        assert member is not None
        data = member.read()
    assert names == ["open.json", "step-000000000007-train.npz", "end.json"]
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        assert archive.files == ["meta.json", "labels.json", "q%2F1@model", "loss@model"]
        assert np.array_equal(archive["q%2F1@model"], values)
        assert archive["loss@model"] == np.float32(2)


@pytest.mark.parametrize(
    "values", [np.array(["a"]), np.array([None]), np.array(["2020"], "M8[Y]"), np.zeros(2, "f8,i4")]
)
def test_what_is_no_number_is_refused(values: np.ndarray) -> None:
    with pytest.raises(BadArgument, match="cannot hold"):
        Measurement("q", values, ("n",))


def test_limits_hold_for_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "ARRAYS", 4096)
    many = tuple(Measurement(f"q{n}", np.zeros(1, "i1"), ("n",)) for n in range(4096))
    deep = (Measurement("q", np.zeros((1,) * 9), tuple("abcdefghi")),)
    chatty = {"notes": {"text": "x" * JSON_BYTES}}
    twice = (Measurement("q", np.zeros(1), ("n",)),) * 2
    cases: dict[str, Callable[[], Recording]] = {
        "4098 arrays": lambda: Recording(0, measurements=many),
        "9 dims": lambda: Recording(0, measurements=deep),
        "bytes of meta.json": lambda: Recording(0, **chatty),
        "given twice": lambda: Recording(0, measurements=twice),
        "infinity": lambda: Recording(0, time=float("inf")),
        "NoneType": lambda: Recording(0, time=None),  # type: ignore[arg-type]
        "phase": lambda: Recording(0, phase="p" * 65),
    }
    for words, make in cases.items():
        with RunWriter(tmp_path / words.replace(" ", "-")) as writer:
            assert not writer.append(make())
            assert words in str(writer.problems[0])
            assert "step 0" in str(writer.problems[0])
            assert "training goes on" in str(writer.problems[0])
        assert len(open_run(writer.path)) == 0
        assert open_run(writer.path).verify() == ()


def test_float64_is_narrowed_only_where_nothing_is_lost_in_range() -> None:
    plain = Measurement.of("window_bias", np.array([0.25, np.nan, np.inf, -np.inf, 0.0]))
    assert plain.values.dtype == np.float32
    for extreme in (1e-40, 1e300):
        assert Measurement.of("window_bias", np.array([extreme, 1.0])).values.dtype == np.float64
    assert Measurement.of("window_bias", np.ones(3), keep_dtype=True).values.dtype == np.float64
    assert narrowed(np.arange(3)).dtype == np.arange(3).dtype


def test_a_directory_is_parsed_alike_whether_its_form_was_seen_before() -> None:
    """The fast path goes by the lengths of names seen before; other names of the same lengths must not mix."""

    def packed(names: str) -> bytes:
        return stored.pack(
            Recording(
                0,
                time=0.0,
                measurements=tuple(Measurement(n, np.full(3, ord(n)), ("n",)) for n in names),
            )
        )

    for names in ("abc", "abd", "abc"):
        found = stored.unpack(packed(names), stored.Decoder({}, {}), 0, sees_nothing)
        assert {m.name: int(m.values[0]) for m in found.measurements} == {n: ord(n) for n in names}


def test_an_npy_header_is_numpys_own() -> None:
    for shape in [(), (3,), (3, 4), (1, 2, 3)]:
        for dtype in DTYPES:
            values = np.zeros(shape, dtype)
            file = io.BytesIO()
            np.lib.format.write_array(file, values, version=(1, 0))
            assert b"".join(npz.array_parts(values))[128:] == file.getvalue()[128:]
            assert np.array_equal(np.load(io.BytesIO(b"".join(npz.array_parts(values)))), values)
