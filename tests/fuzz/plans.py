"""Mutations of plans: of what the JSON says, and of its bytes.

A new one is a function with the decorator of its table.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

from tests.fuzz.choice import Rng, pick

MUTATORS: dict[str, Callable[[Any, Rng], Any]] = {}
BYTE_MUTATORS: dict[str, Callable[[bytes, Rng], bytes]] = {}

# Values of every kind, most of which fit nowhere.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 8, 2**31 - 1, 2**31, 2**63, 10**30, 10**400, -(10**30)),
    *(0.5, 1.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *("", "x", "0.5", "\x1b[31mred", "a\nb", "\ud800", "\u202e", "x" * 5000, "obs", "auto", "none"),
    *([], [[]], [None], [1, "a"], {}, {"a": {}}, {"name": "x"}),
)


def mutator(function: Callable[[Any, Rng], Any]) -> Callable[[Any, Rng], Any]:
    """Put a mutator of what the JSON says into the table."""
    MUTATORS[function.__name__] = function
    return function


def content(function: Callable[[bytes, Rng], bytes]) -> Callable[[bytes, Rng], bytes]:
    """Put a mutator of bytes into the table."""
    BYTE_MUTATORS[function.__name__] = function
    return function


def places(data: Any, found: list[tuple[Any, Any]] | None = None) -> list[tuple[Any, Any]]:
    """(container, key or index) of everything in a nesting of dictionaries and lists."""
    found = [] if found is None else found
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        found.append((data, key))
        places(data[key], found)
    return found


def mutated(plan: str, rng: Rng) -> bytes:
    """The bytes of a plan to which one to three things happened."""
    data = json.loads(plan)
    for _ in range(int(rng.integers(1, 4))):
        if isinstance(data, (dict, list)) and rng.random() < 0.75:
            data = pick(rng, list(MUTATORS.values()))(data, rng)
    blob = json.dumps(data).encode()
    return pick(rng, list(BYTE_MUTATORS.values()))(blob, rng) if rng.random() < 0.35 else blob


@mutator
def another_value(data: Any, rng: Rng) -> Any:
    where = places(data)
    if not where:
        return pick(rng, VALUES)
    # As often in the few places above as in the many numbers below.
    container, key = pick(rng, where if rng.random() < 0.3 else where[: 40 + len(where) // 50])
    container[key] = copy.deepcopy(pick(rng, VALUES))
    return data


@mutator
def another_option(data: Any, rng: Rng) -> Any:
    config = data.get("config") if isinstance(data, dict) else None
    if isinstance(config, dict) and config:
        config[pick(rng, sorted(config))] = copy.deepcopy(pick(rng, VALUES))
    return data


@mutator
def missing(data: Any, rng: Rng) -> Any:
    where = places(data)
    if where:
        container, key = pick(rng, where[:60])
        if isinstance(container, dict) or key < len(container):
            del container[key]
    return data


@mutator
def unknown_key(data: Any, rng: Rng) -> Any:
    objects = [data, *(c[k] for c, k in places(data))]
    objects = [o for o in objects if isinstance(o, dict)]
    if objects:
        pick(rng, objects)[pick(rng, ("speed", "", "kept", "\x1b[2J", "force", "format"))] = pick(rng, VALUES)
    return data


@mutator
def another_version(data: Any, rng: Rng) -> Any:
    if isinstance(data, dict):
        data["format"] = pick(rng, (0, 1, 2, 4, 99, -1, 2.0, "2", True, None, 10**400))
    return data


def _groups(data: Any) -> list[dict[str, Any]]:
    groups = data.get("groups") if isinstance(data, dict) else None
    return [g for g in groups if isinstance(g, dict)] if isinstance(groups, list) else []


@mutator
def another_choice(data: Any, rng: Rng) -> Any:
    """Other units, in order: a plan that is as good as any."""
    for g in _groups(data):
        units = g.get("units")
        if type(units) is int and 0 < units < 10_000:
            kept = rng.permutation(units)[: int(rng.integers(0, units + 1))]
            g["kept"] = sorted(int(k) for k in kept)
            g.pop("coefficients", None)
    return data


@mutator
def wrong_units(data: Any, rng: Rng) -> Any:
    for g in _groups(data):
        kept = g.get("kept")
        if isinstance(kept, list) and kept:
            at = int(rng.integers(len(kept)))
            kept[at] = pick(rng, (-1, kept[0], 10**9, 2**63, 10**30, 0.5, True, None, "1", g.get("units")))
            if rng.random() < 0.3:
                rng.shuffle(kept)
    return data


@mutator
def no_units(data: Any, rng: Rng) -> Any:
    for g in _groups(data):
        if rng.random() < 0.5:
            g["kept"] = []
            g.pop("coefficients", None)
    return data


@mutator
def a_group_twice(data: Any, rng: Rng) -> Any:
    groups = _groups(data)
    if groups:
        twin = copy.deepcopy(pick(rng, groups))
        if rng.random() < 0.5:
            twin["name"] = f"{twin.get('name')}_again"
        data["groups"].append(twin)
    return data


@mutator
def wild_coefficients(data: Any, rng: Rng) -> Any:
    for g in _groups(data):
        kept = g.get("kept")
        if isinstance(kept, list):
            size = len(kept) + int(rng.integers(-1, 2))
            one = pick(rng, (1.0, 0.0, -1.0, 1e30, 1e300, float("nan"), 10**400, "1", True, None))
            g["coefficients"] = [one] * max(size, 0)
    return data


# bytes


@content
def cut_short(blob: bytes, rng: Rng) -> bytes:
    return blob[: int(rng.integers(len(blob) + 1))]


@content
def other_bytes(blob: bytes, rng: Rng) -> bytes:
    found = bytearray(blob)
    for _ in range(int(rng.integers(1, 9)) if found else 0):
        found[int(rng.integers(len(found)))] = int(rng.integers(256))
    return bytes(found)


@content
def a_part_elsewhere(blob: bytes, rng: Rng) -> bytes:
    a, b, c = sorted(int(i) for i in rng.integers(len(blob) + 1, size=3))
    return blob[:c] + blob[a:b] + blob[c:] if rng.random() < 0.5 else blob[:a] + blob[b:]


@content
def other_encoding(blob: bytes, rng: Rng) -> bytes:
    return pick(rng, (b"\xef\xbb\xbf" + blob, blob.decode().encode("utf-16"), blob + b"\0", b"\xff" + blob))


@content
def nested(blob: bytes, rng: Rng) -> bytes:
    depth = int(rng.integers(1, 200_000))
    return pick(rng, (b"[" * depth + blob, b'{"a":' * depth, blob + b"]" * depth, b"[" * depth + b"]" * depth))


@content
def long_numbers(blob: bytes, rng: Rng) -> bytes:
    number = pick(rng, (b"9" * 4000, b"9" * 5000, b"-" + b"9" * 100_000, b"1e999", b"1e-999", b"0." + b"1" * 10_000))
    numbers = [m.span() for m in re.finditer(rb"\d+", blob)]
    if not numbers:
        return number
    start, end = pick(rng, numbers)
    return blob[:start] + number + blob[end:]


@content
def a_key_twice(blob: bytes, rng: Rng) -> bytes:
    keys = [m.start() for m in re.finditer(rb'"\w+": ', blob)]
    if not keys:
        return blob
    at = pick(rng, keys)
    key = blob[at : blob.index(b":", at) + 1]
    return blob[:at] + key + pick(rng, (b"1, ", b"[], ", b'"x", ', b"{}, ")) + blob[at:]


@content
def nothing_but(blob: bytes, rng: Rng) -> bytes:
    return pick(
        rng, (b"", b" ", b"null", b"3", b'"x"', b"[]", b"{}", b"NaN", b"\0" * 1000, b"PK\x03\x04", b"\n" * 10**6)
    )
