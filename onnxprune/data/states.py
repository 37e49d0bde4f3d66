"""States that a model is fed back: an output of one step is an input of the next."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxprune.errors import UsageError
from onnxprune.options import shown

# Each more multiplies the time that a match may take.
_MOST_STARS = 3
_NOWHERE: Mapping[str, str] = {}


@dataclass(frozen=True)
class State:
    """An output, and the input that gets it in the next step."""

    output: str
    input: str

    def __str__(self) -> str:
        return f"{self.output}={self.input}"


def states_of(
    proto: onnx.ModelProto, given: Sequence[str], elsewhere: Mapping[str, str] = _NOWHERE
) -> tuple[State, ...]:
    """What `OUT=IN` names. Raises UsageError for what the model does not have, and for an input that is named twice.

    A * in OUT stands for any letters, and the one in IN at the same place for these. elsewhere: of names that lie
    outside the part of a model which is run, what they are.
    """
    inputs, outputs = ([v.name for v in ports] for ports in (proto.graph.input, proto.graph.output))
    states = tuple(s for text in given for s in _states(text, inputs, outputs, elsewhere))
    fed = [s.input for s in states]
    twice = next((name for name in fed if fed.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"input {twice!r} gets two states; name it once")
    if states and not set(inputs) - set(fed):
        raise UsageError("every input is a state, so there is nothing to learn from; leave out one that data are for")
    return states


def _states(
    text: str, inputs: Sequence[str], outputs: Sequence[str], elsewhere: Mapping[str, str]
) -> tuple[State, ...]:
    """What a pair names, or a pair of patterns."""
    output, _, given = text.partition("=")
    stars = output.count("*")
    if not stars or stars != given.count("*"):
        return (_state(text, inputs, outputs, elsewhere),)
    if stars > _MOST_STARS:
        raise UsageError(f"the state {shown(text)} has {stars} stars in each pattern; at most {_MOST_STARS}")
    like = re.compile("(.*)".join(map(re.escape, output.split("*"))))
    found: list[State] = []
    for name in outputs:
        match = like.fullmatch(name)
        if match is not None:
            parts = given.split("*")
            source = parts[0] + "".join(x + part for x, part in zip(match.groups(), parts[1:], strict=True))
            if source not in inputs:
                raise UsageError(f"the state {text!r} makes an input {source!r} of the output {name!r}, which is none")
            found.append(State(name, source))
    if not found:
        raise UsageError(f"the state {text!r} names no output: the model gives {', '.join(map(repr, outputs))}")
    return tuple(found)


def _state(text: str, inputs: Sequence[str], outputs: Sequence[str], elsewhere: Mapping[str, str]) -> State:
    """A name may hold a "=" too: the place counts that leaves names of the model on both sides."""
    places = [i for i, letter in enumerate(text) if letter == "="]
    for i in places:
        if text[:i] in outputs and text[i + 1 :] in inputs:
            return State(text[:i], text[i + 1 :])
    if not places:
        raise UsageError(f"the state {text!r} is no pair; write OUT=IN, an output and the input that gets it")
    for name in (x for i in places for x in (text[:i], text[i + 1 :])):
        if name in elsewhere and name not in (*inputs, *outputs):
            raise UsageError(f"the state {text!r} cannot be fed back: {name!r} is {elsewhere[name]}")
    if text[: places[0]] not in outputs:
        raise UsageError(f"the state {text!r} names no output: the model gives {', '.join(map(repr, outputs))}")
    raise UsageError(f"the state {text!r} names no input: the model reads {', '.join(map(repr, inputs))}")
