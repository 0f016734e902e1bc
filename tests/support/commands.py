"""`penstock …` as users type it: run to its end, in the background, or on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment(url: str = "", **more: str) -> dict[str, str]:
    """A user's, who knows one server and has no terminal."""
    foreign = ("PENSTOCK_", "OPENAI_", "REDIS_URL", "NO_COLOR", "FORCE_COLOR")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**inherited, "PYTHONPATH": str(ROOT), **({"PENSTOCK_URL": url} if url else {}), **more}


def command(*words: str) -> list[str]:
    """The command line of `penstock words…`."""
    return [sys.executable, "-m", "cli", *words]


def penstock(
    folder: Path, env: dict[str, str], *words: str, stdin: str = "", within_s: float = 100
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        command(*words), cwd=folder, env=env, input=stdin, capture_output=True, text=True, timeout=within_s, check=False
    )


def _at_a_keyboard(slave: int) -> None:
    """Makes this process that of a terminal. What a shell starts in the background inherits that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.login_tty(slave)


class Terminal:
    """A command on a terminal of its own, 100 columns wide."""

    def __init__(self, folder: Path, env: dict[str, str], *words: str) -> None:
        self._master, slave = pty.openpty()
        size = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        self.popen = subprocess.Popen(
            command(*words),
            cwd=folder,
            env={**env, **size},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=lambda: _at_a_keyboard(slave),  # noqa: PLW1509 - only so Ctrl-C reaches it as from a keyboard
        )
        os.close(slave)
        self.raw = ""

    @property
    def shown(self) -> str:
        """Everything that was written, without what moves the cursor and colours."""
        return _ESCAPES.sub("", self.raw)

    def until(self, pattern: str, within_s: float = 60) -> re.Match[str]:
        """Reads until that was shown."""
        give_up_at_s = time.monotonic() + within_s
        while time.monotonic() < give_up_at_s:
            if found := re.search(pattern, self.shown):
                return found
            self._read(0.1)
        raise AssertionError(f"{pattern!r} was not shown within {within_s} s:\n{self.shown[-3000:]}")

    def press(self, keys: bytes) -> None:
        """As if somebody typed it."""
        os.write(self._master, keys)

    def ended(self, within_s: float = 60) -> int:
        """The exit status, once it has ended."""
        give_up_at_s = time.monotonic() + within_s
        while self.popen.poll() is None:
            assert time.monotonic() < give_up_at_s, self.shown[-3000:]
            self._read(0.1)
        self._read(0.1)
        assert self.popen.returncode is not None
        return self.popen.returncode

    def _read(self, wait_s: float) -> None:
        while select.select([self._master], [], [], wait_s)[0]:
            try:
                self.raw += os.read(self._master, 65_536).decode(errors="replace")
            except OSError:  # Linux's way to say that the other end is closed
                return
            wait_s = 0

    def close(self) -> None:
        """Ends whatever is left."""
        with contextlib.suppress(ProcessLookupError):
            self.popen.kill()
        self.popen.wait(10)
        os.close(self._master)
