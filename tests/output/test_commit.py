"""Files appear whole and together: whatever fails, comes between, or ends the process."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from onnxprune.errors import RunError
from onnxprune.output.commit import TEMPORARY, Stage, write_atomically
from tests.digits import FOLDER

posix = pytest.mark.skipif(os.name != "posix", reason="links and signals of POSIX")
# What a commit asks of the system; whatever it is, it may be the last thing that happens, or fail.
CALLS = ("replace", "link", "unlink", "fsync")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def put_all(folder: Path, text: str) -> None:
    """Three files, one of them named by its content."""
    with Stage() as stage:
        stage.put(folder / "plan", f"{text} plan".encode())
        stage.put_by_content(folder / "data", lambda digest: folder / f"data {digest[:6]}", f"{text} data".encode())
        stage.put(folder / "model", f"{text} model".encode())
        stage.commit()


@contextmanager
def after_call(number: int, happens: Callable[[], None]) -> Iterator[list[str]]:
    """Let something happen after so many calls of the system; the calls so far."""
    seen: list[str] = []

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            result = real(*args, **options)
            seen.append(name)
            if len(seen) == number:
                happens()
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, watched(name, getattr(os, name)))
        yield seen


def test_all_appear(tmp_path: Path) -> None:
    """Fails where a file is not what was given, or a temporary one stays behind."""
    put_all(tmp_path, "old")
    write_atomically(tmp_path / "more", b"more")
    put_all(tmp_path, "new")
    assert sorted(c.decode() for c in contents(tmp_path).values()) == [
        "more",
        "new data",
        "new model",
        "new plan",
        "old data",
    ]


@pytest.mark.parametrize("second_names", [True, False])
@pytest.mark.parametrize("which", ["plan", "model"])
def test_what_appears_meanwhile_stays(
    which: str, second_names: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a file of somebody else is replaced although nobody allowed it, or the others appear nevertheless."""
    if not second_names:

        def none(*_: object, **__: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "link", none)
    with Stage(overwrite=False) as stage:
        for name in ("plan", "model"):
            stage.put(tmp_path / name, b"mine")
        (tmp_path / which).write_bytes(b"theirs")
        with pytest.raises(RunError, match=rf"{which} has appeared during the run.*--overwrite"):
            stage.commit()
    assert contents(tmp_path) == {which: b"theirs"}


def test_new_files_appear_also_where_a_link_leads_nowhere(tmp_path: Path) -> None:
    """Fails where a file is taken for another one's, or keeps its temporary name beside its own."""
    (tmp_path / "plan").symlink_to("nowhere")
    with Stage(overwrite=False) as stage:
        for name in ("plan", "model"):
            stage.put(tmp_path / name, b"mine")
        stage.commit()
    assert contents(tmp_path) == {"plan": b"mine", "model": b"mine"}


def test_nothing_appears_before_the_commit(tmp_path: Path) -> None:
    with Stage() as stage:
        stage.put(tmp_path / "model", b"model")
        (only,) = tmp_path.iterdir()
        assert only.name.startswith(".model.")
        assert only.name.endswith(TEMPORARY)
    assert not contents(tmp_path)
    with Stage() as stage:
        stage.commit()


@posix
def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    """Fails where a file is its owner's alone, or everybody's whatever the mask says."""
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            write_atomically(tmp_path / f"{mask}", b"x")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{mask}").stat().st_mode) == mode


@posix
def test_links(tmp_path: Path) -> None:
    """Fails where what a link leads to is changed, or another name of the old file."""
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"new")
    os.link(tmp_path / "real", tmp_path / "second")
    write_atomically(tmp_path / "real", b"newer")
    assert contents(tmp_path) == {"link": b"new", "second": b"old", "real": b"newer"}


def test_long_names(tmp_path: Path) -> None:
    """Fails where a name that fits has a temporary one that does not."""
    name = "\N{GRINNING FACE}" * 63
    write_atomically(tmp_path / name, b"x")
    assert contents(tmp_path) == {name: b"x"}


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"x cannot be written: No such file"):
        write_atomically(tmp_path / "none" / "x", b"x")


def test_a_full_disk(tmp_path: Path) -> None:
    """Fails where half a file stays, under whatever name."""

    def half(f: IO[bytes]) -> None:
        f.write(b"half")
        raise OSError(28, "No space left on device")

    put_all(tmp_path, "old")
    before = contents(tmp_path)
    with pytest.raises(RunError, match="model cannot be written: No space left on device"), Stage() as stage:
        stage.put(tmp_path / "plan", b"new plan")
        stage.put(tmp_path / "model", half)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("which", ["plan", "data", "model"])
def test_a_rename_that_fails(
    which: str, exists: bool, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where some files are new and others old; on a file system without second names, where one is lost."""
    if exists:
        put_all(tmp_path, "old")
        (tmp_path / "data aaaaaa").write_bytes(b"of another")
    before, replace = contents(tmp_path), os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target).name.startswith(which):
            raise OSError(28, "No space left on device")
        replace(source, target)

    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "replace", failing)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(RunError, match=rf"{which}.* cannot be written: No space left on device"):
        put_all(tmp_path, "new")
    if links or which == "plan":
        assert contents(tmp_path) == before
    else:
        assert contents(tmp_path).get("model") == before.get("model")
        assert not [p for p in tmp_path.iterdir() if p.name.endswith(TEMPORARY)]


@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupt_at_any_point(exists: bool, tmp_path: Path) -> None:
    """Fails where an interrupt leaves old beside new, or a temporary file."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    new = {"new plan", "new data", "new model"}
    outcomes = set()
    for number in range(1, 100):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        if exists:
            put_all(folder, "old")
        old = {c.decode() for c in contents(folder).values()}
        with after_call(number, interrupt) as seen:
            try:
                put_all(folder, "new")
            except KeyboardInterrupt:
                pass
            else:
                if len(seen) < number:
                    break
        found = {c.decode() for c in contents(folder).values()}
        assert found in (old, new | (old & {"old data"})), (number, seen)
        outcomes.add(found == old)
    assert number > 6
    assert outcomes == {True, False}


KILLED = """
import json, os, signal, sys
from pathlib import Path
from tests.output.test_commit import after_call, contents, put_all
root, found = Path(sys.argv[1]), []
for number in range(1, 100):
    folder = root / str(number)
    folder.mkdir()
    put_all(folder, "old")
    child = os.fork()
    if not child:
        with after_call(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            put_all(folder, "new")
        os._exit(0)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        break
    found.append({k: v.decode() for k, v in contents(folder).items()})
print(json.dumps(found))
"""


@posix
def test_a_kill_at_any_point(tmp_path: Path) -> None:
    """Fails where a kill leaves half a file under its name, or the last one new where another one is not."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=True, cwd=FOLDER.parent
    )
    found = json.loads(done.stdout)
    assert len(found) > 7
    for files in found:
        named = {k: v for k, v in files.items() if not k.endswith(TEMPORARY)}
        assert set(named.values()) <= {f"{age} {what}" for age in ("old", "new") for what in ("plan", "data", "model")}
        assert "old data" in named.values()
        if named["model"] == "new model":
            assert {"new plan", "new data"} <= set(named.values())
    assert {files["model"] for files in found} == {"old model", "new model"}
