"""Runs damaged at random: bytes of a segment, or single arrays that are whole but not of the form they should have."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rnndiag.store import npz, stored, tar
from rnndiag.store.reader import StoredRun

WORDS = (
    b"\x1b[2J",
    b"\n::error::x\n",
    b"9" * 400,
    b"\xff\xfe",
    b"PK\x01\x02",
    b"ustar",
    b'{"a":',
    b"../../x",
)
ODD_SHAPES = ((), (0,), (1,), (3,), (2, 2), (0, 6), (60, 5), (61, 6), (1, 1, 1))
ODD_NUMBERS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e308, 1e-308)


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three flips, cuts, doublings, zeroes or foreign words."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(len(out), 1))
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and rng.random() < 0.2:
            del out[at:]
        elif kind == 2:
            del out[at : at + rng.randint(1, 200)]
        elif kind == 3:
            out[at:at] = out[max(0, at - rng.randint(1, 600)) : at]
        elif kind == 4:
            out[at : at + 30] = bytes(min(30, len(out) - at))
        else:
            out[at:at] = rng.choice(WORDS)
    return bytes(out)


def mutated_arrays(run: StoredRun, data: bytes, rng: random.Random) -> bytes:
    """The segment with some arrays of one recording dropped, reshaped, or filled with odd numbers; checksums hold."""
    group = rng.choice(run.groups)[0]
    entries = run.collector.directory(group)
    victims = set(rng.sample(sorted(entries), min(len(entries), rng.randint(1, 3))))
    content = []
    for name, (start, size, _) in entries.items():
        raw = data[group.start + start : group.start + start + size]
        if name in victims:
            changed = _changed(name, raw, rng)
            if changed is None:
                continue
            raw = changed
        content.append((name, (raw,)))
    packed = npz.pack(content)
    member = tar.member(
        tar.recording_name(group.step, stored.encoded_phase(group.phase)), packed, 0
    )
    begin, end = group.start - tar.BLOCK, group.start + tar.padded(group.size)
    return data[:begin] + member + data[end:]


def _changed(name: str, raw: bytes, rng: random.Random) -> bytes | None:
    if not name.endswith(".npy"):
        return raw if rng.random() < 0.5 else rng.choice((b"{}", b'{"step": 1}', b"[]"))
    values = npz.array(raw)
    kind = rng.randrange(4)
    if kind == 0:
        return None
    if kind == 1:
        values = np.ones(rng.choice(ODD_SHAPES))
    elif kind == 2:
        values = np.full(values.shape, rng.choice(ODD_NUMBERS))
    else:
        values = values.astype(rng.choice(("<f2", "<i1", "<c8", "|b1", "<f8")))
    return b"".join(npz.array_parts(np.asarray(values)))


def mutants(folder: Path, count: int, seed: int) -> Iterator[int]:
    """Change the one segment of the run in `folder` `count` times, yield the number of each, and restore it."""
    (segment,) = (folder / "recordings").glob("r*.tar")
    whole = segment.read_bytes()
    run = StoredRun(folder)
    rng = random.Random(seed)
    try:
        for number in range(count):
            with np.errstate(all="ignore"):
                data = mutated_bytes(whole, rng) if number % 2 else mutated_arrays(run, whole, rng)
            segment.write_bytes(data)
            yield number
    finally:
        segment.write_bytes(whole)
