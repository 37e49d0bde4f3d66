"""A Python file with a function that yields the samples, as polygraphy's `--data-loader-script` has it.

The file runs in this process, with all rights of whoever started it; it is never found, only named.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from onnxprune.data import streams
from onnxprune.data.accepted import Wanted
from onnxprune.data.given import Given
from onnxprune.data.inputs import InputSpec
from onnxprune.errors import CalibrationError, OnnxPruneError
from onnxprune.regular_files import content
from onnxprune.user_code import RAISED, functions_in, line_of

FUNCTION = "load_data"
_MODULE = "onnxprune_data_script"
_MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Script:
    """A Python file, and the name of the function in it that takes nothing and yields batches (`streams`)."""

    path: str | os.PathLike[str]
    function: str = FUNCTION

    def given(self, specs: tuple[InputSpec, ...], wanted: Wanted) -> Given:
        """The batches that the function yields. Raises CalibrationError, with the line that failed."""
        path = Path(self.path)
        source = content(path, CalibrationError, _MOST_BYTES)
        with _running(path, source) as module:
            own = getattr(module, self.function, None)
            if not callable(own):
                names = ", ".join(functions_in(module)) or "none"
                raise CalibrationError(
                    f"{path} has no function {self.function}(); name another one: {path}:NAME (it has {names})"
                )
            made = streams.by_function(own, specs, wanted)
        # The file may say something else by the time that a report or a plan is read.
        prepared = (
            f"script: what {self.function}() yields, of a file with sha256 {hashlib.sha256(source).hexdigest()[:16]}…"
        )
        return Given(specs, made.parts, f"{path}:{self.function}", made.notes, prepared, made.offered)


@contextmanager
def _running(path: Path, source: bytes) -> Iterator[ModuleType]:
    """The file with this content as a module, while its folder is on the path, and what it prints goes to stderr.

    Raises CalibrationError for whatever it raises.
    """
    module = ModuleType(_MODULE)
    module.__file__ = str(path)
    paths, known = list(sys.path), sys.modules.get(_MODULE)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[_MODULE] = module  # where pickles and dataclasses look it up
    try:
        with redirect_stdout(sys.stderr):
            exec(compile(source, str(path), "exec"), vars(module))
            yield module
    except CalibrationError as e:
        line = line_of(e.__cause__, path)
        if not line or str(e).startswith(str(path)):
            raise
        raise CalibrationError(f"{path}, line {line}: {str(e).removeprefix('the data: ')}") from e
    except OnnxPruneError:
        raise
    except SyntaxError as e:
        raise CalibrationError(f"{path}, line {e.lineno or 0}: {e.msg}") from e
    except RAISED as e:
        text = " ".join(str(e).split())[:200]
        raise CalibrationError(f"{path}, line {line_of(e, path)}: {type(e).__name__}: {text}") from e
    finally:
        sys.path[:] = paths
        if known is None:
            sys.modules.pop(_MODULE, None)
        else:
            sys.modules[_MODULE] = known
