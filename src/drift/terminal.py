"""The one way to the terminal: without control sequences and secrets, and without an end where nobody reads on."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from drift.secrets import scrubbed

if TYPE_CHECKING:
    from rich.console import Console

# Escape sequences whole, then every other control character but tab and line feed, and those that turn the direction.
_CONTROL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[]P^_X]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
    # What shows nothing and breaks or splits words, but for what scripts and emoji need.
    r"|[\xad\u180e\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\U000e0000-\U000e007f]"
)
# Streams that could be written to no longer, and why.
_lost: dict[int, OSError] = {}


def clean(text: str) -> str:
    """``text`` without what a terminal obeys, and without half characters, which no encoding can carry."""
    return _CONTROL.sub("", text).encode(errors="replace").decode()


def tell(text: str = "", *, error: bool = False, end: str = "\n") -> None:
    """Write to standard output, or to standard error; where nobody reads any more, the work goes on unheard."""
    stream = sys.stderr if error else sys.stdout
    try:
        print(clean(scrubbed(text)), file=stream, end=end, flush=True)
    except OSError as failure:
        _lose(stream, failure)


def console(*, error: bool = False) -> Console:
    """A console of rich for tables and colours: no text that it is given is markup or a control sequence."""
    from rich.console import Console

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(clean(scrubbed(text)), **{**options, "markup": False, "emoji": False})

        def print(self, *objects: Any, **options: Any) -> None:
            try:
                super().print(*objects, **options)
            except OSError as failure:
                _lose(self.file, failure)

        def on_broken_pipe(self) -> None:
            _lose(self.file, BrokenPipeError())

    return Plain(stderr=error, highlight=False, markup=False, emoji=False)


def flushed() -> OSError | None:
    """Write what is still held back; returns why not all could be written, but for a reader that left."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as failure:
            _lose(stream, failure)
    return next((failure for failure in _lost.values() if not isinstance(failure, BrokenPipeError)), None)


def _lose(stream: Any, failure: OSError) -> None:
    """Let what is still written to a stream go nowhere; Python would fail once more while closing it."""
    with suppress(OSError, ValueError, AttributeError):
        _lost[stream.fileno()] = failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def prepare() -> None:
    """Let no text fail for want of a letter, and no warning of a library carry control sequences."""
    import warnings

    # The next file that is opened would get the number of a closed stream, and with it what libraries print.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        # A stream that can't be changed, as one that reads and writes a pipe, is used as it is.
        with suppress(OSError):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")
    plain = warnings.formatwarning
    warnings.formatwarning = lambda *arguments, **named: clean(plain(*arguments, **named))
