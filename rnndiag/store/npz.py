"""One recording as the bytes of an npz file, and back: `np.load` and `unzip` read it too.

Only what we write is read: stored entries, one after the other without gaps, numpy headers of one fixed form. So no
entry can overlap another, expand, or name a type that is not a number. CRC-32 guards every entry, and the zip comment
holds another one over the directory, since a flipped bit there would silently rename an array.

The container is written and read by hand, because `zipfile` is many times slower (benchmarks/store.py).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate, repeat
from math import prod
from operator import sub
from zlib import crc32

import numpy as np

from rnndiag.store.limits import ARRAYS, DIMS, NAME_BYTES, RECORDING_BYTES
from rnndiag.store.measurement import STORED_DTYPES

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION, _DATE, _MODE = 20, 33, 0o644 << 16
_COMMENT = b"rnndiag directory crc32 "
TAIL_BYTES = _END.size + len(_COMMENT) + 8
"""Length in bytes of the record at the end of the file that locates the directory and holds its checksum."""

_NPY_MAGIC = b"\x93NUMPY\x01\x00"
_NPY_HEADER = re.compile(
    rb"\{'descr': '([<|][biufc][0-9]{1,2})', 'fortran_order': False, "
    rb"'shape': \(((?:[0-9]{1,18}, ){0,8}(?:[0-9]{1,18},?)?)\), \} *\n"
)


class Damaged(ValueError):
    """The bytes differ from those that were written: truncated, or a checksum does not match."""


class Refused(Damaged):
    """The bytes are intact but of a kind that is never read: compressed, pickled or oversized."""


Entry = tuple[int, int, int]
"""Where the content of one entry lies within the recording: start and size in bytes, checksum."""


@lru_cache(maxsize=4096)
def _npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    dims = "".join(f"{n}, " for n in shape)
    dims = dims[:-1] if len(shape) == 1 else dims[:-2]
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({dims}), }}".encode()
    length = -(len(_NPY_MAGIC) + 2 + len(text) + 1) % 64
    text += b" " * length + b"\n"
    return _NPY_MAGIC + struct.pack("<H", len(text)) + text


@lru_cache(maxsize=4096)
def _parsed_header(text: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    found = _NPY_HEADER.fullmatch(text)
    if found is None:
        raise Refused("an array header that is not a plain little-endian one")
    try:
        dtype = np.dtype(found[1].decode())
    except TypeError:
        raise Refused(f"an array of type {found[1].decode()}") from None
    shape = tuple(int(n) for n in found[2].replace(b" ", b"").split(b",") if n)
    if dtype not in STORED_DTYPES or len(shape) > DIMS:
        raise Refused(f"an array of type {dtype} with {len(shape)} dims")
    if max(shape, default=0) > RECORDING_BYTES:
        raise Refused(f"an array of shape {shape}")
    return dtype, shape, prod(shape) * dtype.itemsize


def array_parts(values: np.ndarray) -> tuple[bytes, bytes]:
    """The header and the content of an npy file, little-endian and in C order."""
    if values.dtype.newbyteorder("=") not in STORED_DTYPES:
        raise Refused(f"an array of type {values.dtype} cannot be stored")
    if values.ndim > DIMS:
        raise Refused(f"an array of {values.ndim} dims cannot be stored, at most {DIMS}")
    if max(values.shape, default=0) > RECORDING_BYTES:
        raise Refused(f"an array of shape {values.shape} cannot be stored")
    dtype = values.dtype.newbyteorder("<")
    stored = values if values.dtype == dtype else values.astype(dtype)
    return _npy_header(dtype, values.shape), stored.tobytes()


def pack(entries: Iterable[tuple[str, tuple[bytes, ...]]]) -> bytes:
    """The npz file of these entries, each a name (ASCII) and its content in pieces."""
    pieces: list[bytes] = []
    directory: list[bytes] = []
    offset = 0
    for name, content in entries:
        path, crc, size = name.encode("ascii"), 0, 0
        if len(path) > NAME_BYTES:
            raise Refused(f"a name of {len(path)} bytes cannot be stored, at most {NAME_BYTES}")
        for piece in content:
            crc, size = crc32(piece, crc), size + len(piece)
        facts = (_VERSION, 0, 0, 0, _DATE, crc, size, size, len(path), 0)
        pieces += (_LOCAL.pack(b"PK\3\4", *facts), path, *content)
        directory += (
            _CENTRAL.pack(b"PK\1\2", _VERSION, *facts, 0, 0, 0, _MODE, offset),
            path,
        )
        offset += _LOCAL.size + len(path) + size
        if offset > RECORDING_BYTES:
            raise Refused(f"a recording of more than {RECORDING_BYTES} bytes cannot be stored")
    count, listing = len(directory) // 2, b"".join(directory)
    if count > ARRAYS:
        raise Refused(f"a recording of {count} arrays cannot be stored, at most {ARRAYS}")
    comment_size = TAIL_BYTES - _END.size
    end = _END.pack(b"PK\5\6", 0, 0, count, count, len(listing), offset, comment_size)
    guard = b"%08x" % crc32(end, crc32(listing))
    return b"".join((*pieces, listing, end, _COMMENT, guard))


def directory_span(tail: bytes, size: int) -> tuple[int, int]:
    """Start and end of the directory in a recording of `size` bytes, from its last TAIL_BYTES bytes."""
    if len(tail) != TAIL_BYTES or tail[_END.size : -8] != _COMMENT:
        raise Refused("not an npz file that rnndiag wrote")
    mark, disk, first, here, count, length, start, comment = _END.unpack_from(tail)
    whole = (mark, disk, first, here, comment) == (b"PK\5\6", 0, 0, count, TAIL_BYTES - _END.size)
    if not whole or start + length + TAIL_BYTES != size:
        raise Damaged("its directory is not where it should be")
    return start, start + length


def directory(listing: bytes, tail: bytes, start: int) -> dict[str, Entry]:
    """All entries of a recording, in order. They must fill the bytes before the directory without a gap."""
    if b"%08x" % crc32(tail[: _END.size], crc32(listing)) != tail[-8:]:
        raise Damaged("its directory fails its checksum")
    count = _END.unpack_from(tail)[3]
    if count > ARRAYS:
        raise Refused(f"{count} arrays in one recording, at most {ARRAYS} are read")
    # Most recordings of a run have the same names: try the lengths seen before.
    form = _forms.get((len(listing), count))
    entries = None if form is None else _by_form(listing, start, form)
    if entries is not None:
        return entries
    form = _form(listing, count)
    entries = _by_form(listing, start, form)
    if entries is None:
        raise Refused("arrays that overlap or leave gaps")
    if len(_forms) >= _FORMS_KEPT:
        _forms.clear()
    _forms[len(listing), count] = form
    return entries


_forms: dict[tuple[int, int], tuple[int, ...]] = {}
_FORMS_KEPT = 64
_FIELDS = 18


def _form(listing: bytes, count: int) -> tuple[int, ...]:
    """The lengths of all names in a directory."""
    lengths, at = [], 0
    while at + _CENTRAL.size <= len(listing):
        lengths.append(int.from_bytes(listing[at + 28 : at + 30], "little"))
        at += _CENTRAL.size + lengths[-1]
    if at != len(listing) or len(lengths) != count:
        raise Refused("arrays that overlap or leave gaps")
    return tuple(lengths)


@lru_cache(maxsize=_FORMS_KEPT)
def _whole(lengths: tuple[int, ...]) -> struct.Struct:
    """Unpacks a whole directory at once, four times faster: most recordings of a run have names of the same lengths."""
    return struct.Struct("<" + "".join(_CENTRAL.format[1:] + f"{length}s" for length in lengths))


@lru_cache(maxsize=_FORMS_KEPT)
def _texts(names: tuple[bytes, ...]) -> tuple[str, ...]:
    return tuple(name.decode("ascii", "replace") for name in names)


def _by_form(listing: bytes, start: int, lengths: tuple[int, ...]) -> dict[str, Entry] | None:
    """The entries of a directory whose names have these lengths; None if it does not match."""
    fields = _whole(lengths).unpack(listing)
    marks, methods, names = fields[0::_FIELDS], fields[4::_FIELDS], fields[17::_FIELDS]
    sizes, named, extras, comments = (fields[at::_FIELDS] for at in (8, 10, 11, 12))
    if named != lengths:
        return None
    # Method 0 is "stored": nothing is compressed, and both sizes are equal.
    if any(methods) or sizes != fields[9::_FIELDS]:
        raise Refused("a compressed array")
    ends = tuple(accumulate(map(sum, zip(lengths, sizes, repeat(_LOCAL.size)))))
    if fields[16::_FIELDS] != (0, *ends[:-1]) or any(extras) or any(comments):
        raise Refused("arrays that overlap or leave gaps")
    if (
        {*marks} != {b"PK\1\2"}
        or ends[-1:] != ((start,) if lengths else ())
        or (start and not lengths)
    ):
        raise Refused("arrays that overlap or leave gaps")
    begins = map(sub, ends, sizes)
    texts = _texts(names)
    entries = dict(zip(texts, zip(begins, sizes, fields[7::_FIELDS], strict=True), strict=True))
    if len(entries) != len(lengths):
        raise Refused("two arrays of one name")
    return entries


def content(data: bytes | memoryview, entry: Entry) -> bytes | memoryview:
    """The content of an entry after its checksum was verified; `data` holds just that content."""
    _, size, crc = entry
    if len(data) != size or crc32(data) != crc:
        raise Damaged("it fails its checksum")
    return data


def array(data: bytes | memoryview) -> np.ndarray:
    """The array of one npy entry, read-only, sharing memory with `data`."""
    if bytes(data[:8]) != _NPY_MAGIC or len(data) < 10:
        raise Refused("an entry that is not a numpy array of format 1.0")
    # Magic, version and a 16-bit length precede the header of an npy file.
    begin = 10 + data[8] + 256 * data[9]
    dtype, shape, size = _parsed_header(bytes(data[10:begin]))
    if len(data) - begin != size:
        raise Refused(f"an array of shape {shape} in {len(data) - begin} bytes")
    if not size:
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype, offset=begin).reshape(shape)
