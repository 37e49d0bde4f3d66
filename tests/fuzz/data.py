"""Mutations of data: of arrays, of headers and archives that hold them, of their bytes, and of what lies in a folder.

A new one is a function with the decorator of its table.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.fuzz import plans
from tests.fuzz.choice import Rng, pick

Arrays = dict[str, NDArray[Any]]

MUTATORS: dict[str, Callable[[Arrays, Rng], None]] = {}
HEADER_MUTATORS: dict[str, Callable[[Rng], bytes]] = {}
PLACE_MUTATORS: dict[str, Callable[[Path, Rng], None]] = {}

TYPES = ("f2", "f4", "f8", ">f4", "i1", "u1", "i4", "i8", "u8", "?", "c8", "U3", "S2", "M8[s]", "V4", "O")
VALUES = (0.0, -0.0, 1.0, float("nan"), float("inf"), float("-inf"), 1e-45, 3.4e38, -3.4e38, 255.0, 1e10)
NAMES = ("", "x", "y", "image", "X", "x.npy", "../x", "/x", "x\0", "\x1b[31m", "a\nb", "ä", "\u202e", "n" * 60_000)
KINDS = (zipfile.ZIP_STORED,) * 12 + (zipfile.ZIP_DEFLATED,) * 12 + (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
SHAPES = (
    *("()", "(0,)", "(-1, 6)", "(64,)", "(1000000000000000000, 6)", "(4294967296, 4294967296)", "(2**62,)", "(6.0,)"),
    *("None", "7", "(True, 6)", "('a',)", "(" * 3000, "(" + "9" * 4000 + ",)", "(" + "1, " * 70 + ")", "[64, 6]"),
)
DESCRIPTIONS = (
    *("'<f4'", "'|O'", "'|V0'", "'|S0'", "'<U1000000000'", "[('a', '<f4')]", "('<f4', (1000000000, 1000000000))"),
    *("'zz'", "3", "None", "{}", "'<f16'", "'<M8[ns]'", "'|b1'", "[('a', '|O')]", "'<f4, <f4'", "b'<f4'"),
)


def mutator(function: Callable[[Arrays, Rng], None]) -> Callable[[Arrays, Rng], None]:
    """Put a mutator of arrays into the table."""
    MUTATORS[function.__name__] = function
    return function


def header(function: Callable[[Rng], bytes]) -> Callable[[Rng], bytes]:
    """Put a maker of files with strange headers into the table."""
    HEADER_MUTATORS[function.__name__] = function
    return function


def place(function: Callable[[Path, Rng], None]) -> Callable[[Path, Rng], None]:
    """Put a maker of strange things at a path into the table."""
    PLACE_MUTATORS[function.__name__] = function
    return function


def put(arrays: Arrays, folder: Path, rng: Rng) -> Path:
    """Data in a folder, to which one to three things happened; the path to give to the tool."""
    arrays = dict(arrays)
    for _ in range(int(rng.integers(0, 3))):
        pick(rng, list(MUTATORS.values()))(arrays, rng)
    suffix = ".npy" if (len(arrays) == 1 and rng.random() < 0.5) or rng.random() < 0.1 else ".npz"
    path = folder / f"data{suffix}"
    _write(arrays, path, rng)
    if rng.random() < 0.07:
        pick(rng, list(PLACE_MUTATORS.values()))(path, rng)
    if rng.random() < 0.2:
        inside = folder / "members"
        inside.mkdir()
        path.rename(inside / path.name)
        _write(arrays, inside / f"more{suffix}", rng)
        return inside
    return path


def _write(arrays: Arrays, path: Path, rng: Rng) -> None:
    if path.suffix == ".npy" or rng.random() < 0.05:
        blob = _npy(next(iter(arrays.values()), np.zeros(0)))
        blob = pick(rng, list(HEADER_MUTATORS.values()))(rng) if rng.random() < 0.2 else blob
    else:
        members = [(f"{name}.npy", _npy(a)) for name, a in arrays.items()]
        if rng.random() < 0.1 and members:
            at = int(rng.integers(len(members)))
            members[at] = (members[at][0], pick(rng, list(HEADER_MUTATORS.values()))(rng))
        if rng.random() < 0.15:
            members.append((pick(rng, NAMES), pick(rng, (b"", b"text", *(b for _, b in members[:1])))))
        blob = _zipped(members, pick(rng, KINDS))
        if rng.random() < 0.05:
            blob = bomb(pick(rng, (1 << 20, 400 << 20, 600 << 20, 3 << 30, 1 << 40)))
        blob = _other_sizes(blob, rng) if rng.random() < 0.1 else blob
    if rng.random() < 0.15:
        damage = [plans.cut_short, plans.other_bytes, plans.a_part_elsewhere]
        blob = pick(rng, damage)(blob, rng)
    path.write_bytes(blob)


def archive(arrays: Arrays) -> bytes:
    """The bytes of an archive of arrays: the same at any time, where numpy's hold the hour."""
    return _zipped([(f"{name}.npy", _npy(a)) for name, a in arrays.items()], zipfile.ZIP_STORED)


def _npy(a: NDArray[Any]) -> bytes:
    f = io.BytesIO()
    np.save(f, a, allow_pickle=True)
    return f.getvalue()


def _zipped(members: list[tuple[str, bytes]], kind: int) -> bytes:
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", kind) as z, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand there twice
        for name, blob in members:
            z.writestr(zipfile.ZipInfo(name or "unnamed"), blob, kind)
    return f.getvalue()


def _other_sizes(blob: bytes, rng: Rng) -> bytes:
    """Another number in one of the fields of an archive's directory."""
    at = blob.find(b"PK\x01\x02")
    if at < 0:
        return blob
    place, size = pick(rng, ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)))
    number = pick(rng, (0, 1, 255, 2**16 - 1, 2**31, 2**32 - 1)) % 256**size
    return blob[: at + place] + number.to_bytes(size, "little") + blob[at + place + size :]


def bomb(size: int) -> bytes:
    """An archive of a few kilobytes to megabytes whose member x says that it expands to so many bytes of zeros."""
    shape = size // 24
    start = npy_header(f"({shape}, 6)")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(b"\0" * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    body = first + piece * min(size >> 20, 1000) + packer.flush()
    whole = len(start) + shape * 24
    sizes = struct.pack("<III", 0, len(body), min(whole, 2**32 - 1))
    name = b"x.npy"
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 8, 0, 0) + sizes + struct.pack("<HH", len(name), 0) + name
    entry = b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 0) + sizes
    entry += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    at = len(local) + len(body)
    return local + body + entry + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), at, 0)


def npy_header(
    shape: str, description: str = "'<f4'", version: tuple[int, int] = (1, 0), order: str = "False"
) -> bytes:
    """A header that says what it is told to."""
    text = f"{{'descr': {description}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    size = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + text


# arrays


def _one(arrays: Arrays, rng: Rng) -> str:
    return pick(rng, sorted(arrays))


@mutator
def another_type(arrays: Arrays, rng: Rng) -> None:
    if arrays:
        name = _one(arrays, rng)
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                arrays[name] = arrays[name].astype(pick(rng, TYPES))
            except (TypeError, ValueError):
                arrays[name] = np.zeros(arrays[name].shape, pick(rng, TYPES[:10]))


@mutator
def another_shape(arrays: Arrays, rng: Rng) -> None:
    if arrays:
        name = _one(arrays, rng)
        a = arrays[name]
        changes: list[Callable[[], NDArray[Any]]] = [
            lambda: a.T,
            lambda: a[None],
            lambda: a[..., None],
            lambda: a[:1],
            lambda: a[:0],
            lambda: a.reshape(-1),
            lambda: a[..., :1],
            lambda: a[..., :0],
            lambda: np.asarray(a.reshape(-1)[:1].reshape(()) if a.size else np.float32(0)),
            lambda: np.asfortranarray(a),
            lambda: a[: len(a) // 2] if a.ndim else a,
        ]
        try:
            arrays[name] = pick(rng, changes)()
        except (ValueError, IndexError):
            arrays[name] = np.zeros((2,) * int(rng.integers(0, 9)), np.float32)


@mutator
def other_values(arrays: Arrays, rng: Rng) -> None:
    if arrays:
        name = _one(arrays, rng)
        a = arrays[name]
        if a.dtype.kind != "f" or not a.size:
            return
        a = np.array(a)
        at: Any = ... if rng.random() < 0.5 else int(rng.integers(a.size))
        with np.errstate(over="ignore"):  # half precision holds less
            a.reshape(-1)[at] = pick(rng, VALUES)
        arrays[name] = a


@mutator
def large_integers(arrays: Arrays, rng: Rng) -> None:
    for name, a in arrays.items():
        if a.dtype.kind in "iu":
            limits = np.iinfo(a.dtype)
            arrays[name] = np.full_like(a, pick(rng, (limits.min, limits.max, 0, 7)))


@mutator
def another_name(arrays: Arrays, rng: Rng) -> None:
    if arrays:
        arrays[pick(rng, NAMES)] = arrays.pop(_one(arrays, rng))


@mutator
def missing(arrays: Arrays, rng: Rng) -> None:
    if arrays:
        del arrays[_one(arrays, rng)]


@mutator
def one_more(arrays: Arrays, rng: Rng) -> None:
    arrays[pick(rng, NAMES)] = np.zeros((2,) * int(rng.integers(0, 4)), pick(rng, TYPES[:10]))


@mutator
def the_same_sample(arrays: Arrays, rng: Rng) -> None:
    for name, a in arrays.items():
        if a.ndim and len(a):
            arrays[name] = np.repeat(a[:1], len(a), axis=0)


# headers


@header
def other_shape(rng: Rng) -> bytes:
    return npy_header(pick(rng, SHAPES)) + b"\0" * int(rng.integers(0, 2000))


@header
def other_description(rng: Rng) -> bytes:
    return npy_header("(64, 6)", pick(rng, DESCRIPTIONS)) + b"\0" * int(rng.integers(0, 2000))


@header
def other_version(rng: Rng) -> bytes:
    version = (int(rng.integers(0, 5)), int(rng.integers(0, 3)))
    return npy_header("(64, 6)", version=version) + b"\0" * 1536


@header
def other_order(rng: Rng) -> bytes:
    return npy_header("(64, 6)", order=pick(rng, ("True", "None", "3", "'x'", "[]"))) + b"\0" * 1536


@header
def other_text(rng: Rng) -> bytes:
    texts = (
        b"{}",
        b"",
        b"[" * 5000,
        b"__import__('os').abort()",
        b"{'descr': '<f4'}",
        b"\xff" * 40,
        b"{'a': 1}" * 2000,
    )
    text = pick(rng, texts)
    return b"\x93NUMPY\x01\x00" + (len(text) + int(rng.integers(0, 3))).to_bytes(2, "little") + text + b"\0" * 99


# what lies at a path


@place
def a_pipe(path: Path, rng: Rng) -> None:
    path.unlink()
    os.mkfifo(path)


@place
def a_folder(path: Path, rng: Rng) -> None:
    path.unlink()
    path.mkdir()


@place
def a_link(path: Path, rng: Rng) -> None:
    path.unlink()
    path.symlink_to(pick(rng, (path.name, "/dev/zero", "/dev/null", "nowhere", "/", "model.onnx")))


@place
def hollow(path: Path, rng: Rng) -> None:
    with path.open("r+b") as f:
        f.truncate(pick(rng, (1 << 20, 2 << 30, 1 << 40)))


@place
def nothing(path: Path, rng: Rng) -> None:
    path.write_bytes(b"")
