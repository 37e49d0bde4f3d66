"""What options are called: those of the command line, and the fields of PruneConfig that they set."""

from __future__ import annotations

import re
from collections.abc import Mapping
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


def as_typed(message: str, options: Mapping[str, str]) -> str:
    """What the library says of its parameters, with the names of a command's options in their place.

    options: parameter → option. A name of several words is one wherever it stands outside quotes; a single word, which
    may be one of the language, where the message begins with it and says its value, or lists it.
    """
    one = "|".join(re.escape(k) for k in sorted(options, key=len, reverse=True))
    if not one:
        return message
    begins = re.match(rf"(?:(?:{one})(?:, (?:{one}))* and )(?:{one})(?= )|(?:{one})(?= is | ['\d])", message)
    until = begins.end() if begins else 0
    first = re.sub(rf"\b(?:{one})\b", lambda m: options[m[0]], message[:until])
    rest = re.sub(
        rf"(?<![\w'\"=.-])(?:{one})(?![\w'\"=])", lambda m: options[m[0]] if "_" in m[0] else m[0], message[until:]
    )
    return first + rest
