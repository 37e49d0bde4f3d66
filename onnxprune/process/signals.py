"""Signals that ask a run to end: INT (Ctrl-C), TERM (a stopped container) and HUP (a closed terminal) clean up alike.

The first one raises `Interruption` once, wherever the main thread is, and cleaning up happens on its way out. Python
swallows what is raised inside a finalizer or a callback of compiled code: there it is raised again a moment later, and
`check`, which is called between the parts of the work, raises what was lost in any other way. An import goes through
first, as compiled modules crash where something is raised while they are loaded, and so does the start of a process,
which half done would speak up by itself, and the taking of a condition's lock, which nobody would give back. While
`held`, signals are only noted: a commit goes through. A second Ctrl-C ends the process at once, as a kill would.

Only the command line listens. A program that calls the library keeps its own handlers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

# How long a lost interruption waits: what has lost it is over by then, most likely.
_AGAIN_SECONDS = 0.05
# What a terminal and a parent both send on one Ctrl-C is one.
_ONE_SECONDS = 0.1
# Methods of conditions between which and the statement that calls them a lock belongs to nobody.
_LOCKING = frozenset(("__enter__", "__exit__", "_acquire_restore", "_release_save"))
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Interruption(BaseException):
    """A signal asked for the end. Not a KeyboardInterrupt: click has its own way with those."""

    def __init__(self, number: int, hint: str = "") -> None:
        super().__init__(number, hint)
        self.number = number
        self.hint = hint

    @property
    def exit_code(self) -> int:
        """The exit code as shells count it: 128 and the number of the signal."""
        return 128 + self.number

    def __str__(self) -> str:
        by = "" if self.number == signal.SIGINT else f" by {signal.Signals(self.number).name}"
        return f"interrupted{by}; nothing was written{self.hint}"


class Interrupts:
    """The signals that came since `listen`. held: they are noted and nothing else; set it where nothing may be cut.

    soft: the first Ctrl-C is a wish (`asked`), which whoever set this asks for, and the next one an interruption. hint:
    what the message of an interruption adds.
    """

    def __init__(self) -> None:
        self.held: bool = False
        self.soft: bool = False
        self.asked: bool = False
        self.hint: str = ""
        self.exit_code: int | None = None
        self._first: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}
        self._hook: Callable[[Any], object] | None = None

    def listen(self) -> None:
        """Take the signals over, but those that are ignored (nohup, a shell's background job); in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        for name in (*_NAMES, "SIGALRM"):
            number = getattr(signal, name, None)  # Windows knows some of them
            if number is None or (name in _NAMES and signal.getsignal(number) in (signal.SIG_IGN, None)):
                continue
            self._before[number] = signal.getsignal(number)
            signal.signal(number, self._comes_again if name == "SIGALRM" else self._comes)

    @property
    def deaf(self) -> bool:
        """Whether Ctrl-C comes to nobody: this process was started with SIGINT ignored, as scripts start background
        jobs."""
        return signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)

    def unlisten(self) -> None:
        """Give the signals back to the handlers that they had before."""
        if self._hook is not None:
            sys.unraisablehook, self._hook = self._hook, None
        self._later(0.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def ignore(self) -> None:
        """Ignore the signals, at the very end.

        Python gives up its own handlers before it unloads compiled code, which takes a while.
        """
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def check(self) -> None:
        """Raises the interruption that was lost on the way, if any."""
        if self._first is not None and not self.held:
            raise Interruption(self._first, self.hint)

    def hold(self) -> None:
        """Let nothing interrupt from here on. Raises the interruption that came before, if any."""
        self.held = True
        if self._first is not None:
            raise Interruption(self._first, self.hint)

    def _comes(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._first is None and (self.soft or self.asked):
            if not self.asked:
                self.asked, self._at = True, time.monotonic()
                return
            if time.monotonic() - self._at <= _ONE_SECONDS:
                return
        if self._first is None:
            self._first, self._at = number, time.monotonic()
            self._check_in(frame)
        elif number == signal.SIGINT and time.monotonic() - self._at > _ONE_SECONDS:
            os._exit(128 + number if self.exit_code is None else self.exit_code)

    def _comes_again(self, number: int, frame: FrameType | None) -> None:
        if not _under_way(sys.exc_info()[1]):
            self._check_in(frame)

    def _check_in(self, frame: FrameType | None) -> None:
        """As `check`, once no module is being loaded, no process started and no lock taken any more."""
        if not self.held and _indivisible(frame):
            self._later(_AGAIN_SECONDS)
        else:
            self.check()

    def _unraisable(self, what: Any) -> None:
        if _under_way(what.exc_value):
            if not self.held:
                self._later(_AGAIN_SECONDS)
        elif self._hook is not None:
            self._hook(what)

    def _later(self, seconds: float) -> None:
        if hasattr(signal, "SIGALRM") and signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, seconds)


def _indivisible(frame: FrameType | None) -> bool:
    """Whether a frame runs while a module is loaded, a process of multiprocessing's started, or a lock taken."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        locks = module == "threading" and frame.f_code.co_name in _LOCKING
        if (
            locks
            or module.startswith("multiprocessing.popen_")
            or frame.f_code.co_filename.startswith("<frozen importlib")
        ):
            return True
        frame = frame.f_back
    return False


def _under_way(error: BaseException | None) -> bool:
    """Whether an exception, or one in whose handling it came up, is an interruption."""
    while error is not None and not isinstance(error, Interruption):
        error = error.__context__
    return error is not None
