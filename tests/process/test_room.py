"""What is said where a file cannot be written helps against what is in the way."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import RunError
from onnxprune.output.commit import Stage
from onnxprune.process import spill
from onnxprune.process.room import why_not


def failing(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_a_limit_on_the_size_of_files_is_told_from_a_full_folder():
    assert why_not(failing(errno.ENOSPC), "set TMPDIR") == f"{os.strerror(errno.ENOSPC)}; set TMPDIR"
    assert why_not(failing(errno.EACCES)) == os.strerror(errno.EACCES)
    said = why_not(failing(errno.EFBIG), "set TMPDIR")
    assert "ulimit -f" in said
    assert "TMPDIR" not in said


def test_a_limit_on_the_size_of_files(tmp_path: Path):
    """Fails where a larger folder is advised, which has the same limit, or where nothing is."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with spill.spilling():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            with pytest.raises(RunError, match=r"takes no such file: .*; raise the limit .*ulimit -f") as temporary:
                spill.Spilled(np.zeros(1 << 20))
            with Stage() as stage, pytest.raises(RunError, match=r"cannot be written: .*; raise the limit .*ulimit -f"):
                stage.put(tmp_path / "model", bytes(2 << 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "TMPDIR" not in str(temporary.value)
