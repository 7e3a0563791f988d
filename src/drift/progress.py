"""Progress of long work: a bar with rate and time left in a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar

from drift.terminal import clean, console, flushed, tell

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_EVERY_SECONDS = 10.0
T = TypeVar("T")


class Progress:
    """Counts done work.

    Args:
        label: what is being done.
        total: how much there is to do.
        done: how much was already done by an earlier run.
        unit: what is counted.
        brief: leave nothing of it in the terminal, and say nothing in a log of what is soon done.

    Attributes:
        detail: words to show beside the count.
    """

    def __init__(self, label: str, total: int, *, done: int = 0, unit: str = "it", brief: bool = False) -> None:
        self._label, self._total, self._unit, self._brief = clean(label), total, unit, brief
        self._start_count = self._count = done
        self.detail: Callable[[], str] = str
        self._bar: Bar | None = None
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Self:
        self._start = self._last_line = time.monotonic()
        if self._live:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeRemainingColumn(),
                console=console(error=True),
                transient=self._brief,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, completed=self._count, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._brief and self._last_line == self._start:
            return
        elif self._count > self._start_count or self.detail():
            self._line()

    def advance(self, count: int = 1) -> None:
        """Note that ``count`` more are done."""
        self._count += count
        if self._bar is not None:
            rate = f"{self._rate():.1f} {self._unit}/s" if self._count > self._start_count else ""
            words = clean(", ".join(filter(None, (rate, self.detail()))))
            self._bar.update(self._task, completed=self._count, rate=words)
        elif time.monotonic() - self._last_line >= LINE_EVERY_SECONDS:
            self._line()

    def _rate(self) -> float:
        return (self._count - self._start_count) / max(1e-9, time.monotonic() - self._start)

    def say(self, words: str) -> None:
        """Say something that stays."""
        if self._bar is not None:
            self._bar.console.print(f"{self._label}: {words}", soft_wrap=True)
        else:
            tell(f"{self._label}: {words}", error=True)

    def _line(self) -> None:
        self._last_line = time.monotonic()
        words, rate = f"{self._count}/{self._total}", self._rate()
        if rate > 0:
            words += f", {rate:.1f} {self._unit}/s, {(self._total - self._count) / rate:.0f} s left"
        self.say("; ".join(filter(None, (words, self.detail()))))


def watched(items: Iterable[T], label: str, total: int, *, unit: str) -> Iterator[T]:
    """The items; how many of them have passed is shown where that takes long."""
    with Progress(label, total, unit=unit, brief=True) as progress:
        for item in items:
            yield item
            progress.advance()


def say(text: str) -> None:
    """Tell whoever watches something that is no error."""
    tell(f"drift: {text}", error=True)


def leave(code: int) -> NoReturn:
    """End one of several ranks: threads of gloo that outlive Python's own end abort the process now and then."""
    flushed()
    os._exit(code)
