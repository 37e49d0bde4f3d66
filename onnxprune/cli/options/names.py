"""What options are called: those of the command line, and the fields of PruneConfig that they set."""

from __future__ import annotations

from dataclasses import fields

from onnxprune.config import PruneConfig

DEFAULTS = PruneConfig()
SETTINGS = tuple(f.name for f in fields(PruneConfig))
# What a replay still reads; a plan has decided the other settings already, and they have no effect on it.
_OPEN = frozenset(
    "target batch threads refit recover effort fast state keep_fused then ranges reduce_range keep_float float_share "
    "seed samples memory force".split()
)
DECIDED = tuple(name for name in SETTINGS if name not in _OPEN)


def flag_of(name: str) -> str:
    """The option of a field of PruneConfig."""
    return f"--{name.replace('_', '-')}"
