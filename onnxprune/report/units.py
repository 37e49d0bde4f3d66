"""Numbers as people read them: counts, bytes and times in units of a fitting size."""

from __future__ import annotations


def count(n: float) -> str:
    """A number in human units: 9500, 12.3 k, 4.56 M, 950 G."""
    for start, divisor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if n >= start:
            value = n / divisor
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{n:.0f}"


def size(n: float) -> str:
    """Bytes in human units, powers of 1024."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if n >= 1024**power:
            return f"{n / 1024**power:.1f} {unit}"
    return f"{n:.0f} B"


def latency(seconds: float) -> str:
    """Seconds as milliseconds, three digits: 0.0251 ms, 12.3 ms, 1250 ms."""
    ms = 1000.0 * seconds
    return f"{ms:.3g} ms" if ms < 1000.0 else f"{ms:.0f} ms"


def duration(seconds: float) -> str:
    """Seconds in human units: 12 ms, 3.4 s, 2 min 05 s."""
    if seconds < 1.0:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60.0:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
