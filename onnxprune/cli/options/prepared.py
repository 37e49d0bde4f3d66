"""How files that hold no arrays become data: options of every command that reads some."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.options.section import Section, option
from onnxprune.cli.values import Choice
from onnxprune.data.image_presets import COLORS, LAYOUTS, PRESETS, RESIZES
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.data.accepted import Data

_TYPES = "float32 float16 uint8 int8".split()
_TEXTS = ("tokenizer", "length", "text")
_IMAGES = ("preset", "size", "resize", "scale", "mean", "std", "color", "layout", "dtype", "classes")


def parse_number(text: str) -> float:
    """A number, also as a fraction: 0.5 or 1/255. Raises click.BadParameter."""
    try:
        return float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a number; write 0.5 or 1/255") from None


def parse_numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them. Raises click.BadParameter."""
    return tuple(parse_number(part) for part in text.split(","))


def parse_length(text: str) -> int | str:
    """A number of tokens, or "longest". Raises click.BadParameter."""
    if text.strip().lower() == "longest":
        return "longest"
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number of tokens; write 128, or longest") from None


def parse_sides(text: str) -> tuple[int, int]:
    """Height and width: 224 for a square, 480x640. Raises click.BadParameter."""
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise click.BadParameter(f"{text!r} is not a size; write 224, or 480x640 for height and width")
    return sides[0], sides[-1]


IMAGES = Section(
    "Data: images",
    option(
        "--preset",
        type=Choice(tuple(PRESETS)),
        show_default="none",
        help="How they are resized and scaled, as networks are trained; docs/data.md has the table.",
    ),
    option(
        "--size",
        type=parse_sides,
        metavar="SIZE",
        show_default="the model's",
        help="224, or 480x640: height and width.",
    ),
    option("--resize", type=Choice(RESIZES), show_default="the preset's, or stretch", help="How to get there."),
    option(
        "--scale",
        type=parse_number,
        metavar="X",
        show_default="the preset's",
        help="A value v of 0 to 255 becomes (v * scale - mean) / std; 1/255 is a number too.",
    ),
    option("--mean", type=parse_numbers, metavar="X[,X,X]", show_default="the preset's, or 0", help="See --scale."),
    option("--std", type=parse_numbers, metavar="X[,X,X]", show_default="the preset's, or 1", help="See --scale."),
    option("--color", type=Choice(COLORS), show_default="the preset's, or rgb", help="The order of channels."),
    option("--layout", type=Choice(LAYOUTS), show_default="the model's", help="Where the channels are."),
    option("--dtype", type=Choice(_TYPES), show_default="the model's", help="The type of the numbers."),
    option(
        "--classes",
        metavar="FILE",
        show_default="the folders' names in order",
        help="The name of a class in each line, in the order of the model's output. The first folder on the way to an "
        "image is its class.",
    ),
)


TEXTS = Section(
    "Data: texts",
    option("--tokenizer", metavar="FILE", show_default="none", help="The model's tokenizer.json."),
    option(
        "--length",
        type=parse_length,
        metavar="N|longest",
        show_default="the model's, or longest",
        help="Tokens of every text, cut and filled up; longest: those of the longest one.",
    ),
    option(
        "--text",
        metavar="KEY[,KEY]",
        show_default="text",
        help="The key, or column, of the text; of two texts that belong together both.",
    ),
)
SCRIPT = option(
    "--data-script",
    metavar="FILE[:NAME]",
    show_default="none",
    help="A Python file whose function load_data, or NAME, yields the samples, in place of a path: dicts by input "
    "name, as for polygraphy. It runs with all of your rights.",
)
PREPARED = (IMAGES, TEXTS)


def tokens_listed(path: str, tokenizer: str | None, text: str | None) -> tuple[int, ...]:
    """The tokens of a file, by ids or by texts."""
    from onnxprune.data.token_lists import tokens_of

    return tokens_of(path, tokenizer, text or "text")


def about(path: str | None, given: dict[str, Any], listed: bool) -> dict[str, Any]:
    """The options as they are about some data: a tokenizer that has served a list of tokens says nothing of arrays."""
    from onnxprune.data.text_files import SUFFIXES

    if not listed or (path is not None and path.endswith(SUFFIXES)):
        return given
    return {**given, "tokenizer": None, "text": None}


def data_of(path: str | None, name: str, given: dict[str, Any]) -> Data | None:
    """The data that a command reads; takes the options of the sections here out of what was given.

    path: where the data are; name: the option that says so. Raises UsageError for options that would do nothing.
    """
    from pathlib import Path

    images = {k: v for k in _IMAGES if (v := given.pop(k)) is not None}
    texts = {k: v for k in _TEXTS if (v := given.pop(k)) is not None}
    script = given.pop("data_script")
    option_ = next((f"--{k}" for k in (*images, *texts)), None)
    if script is not None:
        if path is not None or option_ is not None:
            raise UsageError(f"--data-script yields the samples as they are: leave out {option_ or name}")
        return _script(script)
    if path is None:
        if option_ is not None:
            raise UsageError(f"{option_} is about data: give them too, with {name}")
        return None
    if images and texts:
        raise UsageError(f"--{next(iter(images))} is about images, --{next(iter(texts))} about texts: leave out one")
    if texts:
        from onnxprune.data.texts import Texts

        if "tokenizer" not in texts:
            raise UsageError(f"{option_} is about texts, which need a tokenizer.json: give it with --tokenizer")
        return Texts(path, **texts)
    if images:
        from onnxprune.data import files, image_files
        from onnxprune.data.images import Images

        if files.any_in(Path(path)) and not image_files.any_in(Path(path)):
            raise UsageError(f"--{next(iter(images))} is about images, and {path} holds none: leave it out")
        return Images(path, **images)
    return path


def _script(named: str) -> Data:
    """A file, and after a colon the name of its function."""
    from onnxprune.data.scripts import Script

    path, colon, function = named.rpartition(":")
    return Script(path, function) if colon and function.isidentifier() and path else Script(named)
