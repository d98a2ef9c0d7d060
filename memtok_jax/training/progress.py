"""What a command prints while it goes: a bar that stays on its line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

BAR, PLAIN_SECONDS = 24, 10.0


def duration(seconds: float) -> str:
    """42s, 3m05s or 2h07m."""
    seconds = int(seconds + 0.5)
    if seconds < 60:
        return f"{seconds}s"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds < 3600 else f"{seconds // 3600}h{seconds // 60 % 60:02d}m"


class Progress:
    """Speed, loss and time left of a run of `steps` updates that begins at `first`.

    unit: what is read, tokens or images. Time spent outside training (`pause`, `resume`) does not count as speed.
    """

    def __init__(self, first: int, steps: int, quiet: bool, out: TextIO | None = None, unit: str = "tokens"):
        self._out = sys.stdout if out is None else out
        self._terminal, self._quiet = self._out.isatty(), quiet
        self._first, self._steps, self._unit = first, steps, unit
        self._begun = self._mark = time.monotonic()
        self._mark_amount, self._idle, self._printed, self._open_line = 0, 0.0, -PLAIN_SECONDS, False
        self._paused = 0.0

    def say(self, text: str) -> None:
        """Print one line, below the bar."""
        if self._quiet:
            return
        print(("\n" if self._open_line else "") + text, file=self._out, flush=True)
        self._open_line = False

    def first_step_done(self, amount: int) -> None:
        """The first update is done: compilation is over, speed counts from here. amount: tokens or images read so far."""
        self.say(f"first step after {duration(time.monotonic() - self._begun)} (compilation included)")
        self._mark, self._mark_amount, self._begun = time.monotonic(), amount, time.monotonic()

    def pause(self) -> None:
        """Training stops for something else, such as evaluation."""
        self._paused = time.monotonic()

    def resume(self) -> None:
        """Training goes on."""
        lost = time.monotonic() - self._paused
        self._mark, self._idle = self._mark + lost, self._idle + lost

    def rate(self, amount: int) -> float:
        """Tokens or images per second since this was last asked. amount: how many have been read so far."""
        now = time.monotonic()
        rate = (amount - self._mark_amount) / max(now - self._mark, 1e-9)
        self._mark, self._mark_amount = now, amount
        return rate

    def show(self, step: int, loss: float, rate: float) -> None:
        """Show the state after `step` updates."""
        now = time.monotonic()
        last = step == self._steps
        if self._quiet or (not self._terminal and not last and now - self._printed < PLAIN_SECONDS):
            return
        done = max(step - self._first - 1, 1)
        left = (now - self._begun - self._idle) / done * (self._steps - step)
        text = f"step {step}/{self._steps}  loss {loss:.4f}  {rate:,.0f} {self._unit}/s  {duration(left)} left"
        if self._terminal:
            full = BAR * step // self._steps
            self._out.write(f"\r\x1b[K[{'#' * full}{'.' * (BAR - full)}] {text}")
            self._out.flush()
            self._open_line = True
        else:
            print(text, file=self._out, flush=True)
        self._printed = now


class ReadingProgress:
    """How far a text has been read, on standard error.

    total: its bytes, None where they are not known. before: bytes that an earlier command has read.
    """

    def __init__(self, total: int | None, before: int, out: TextIO | None = None):
        self._out = sys.stderr if out is None else out
        self._total, self._before, self._begun, self._printed = total, before, time.monotonic(), time.monotonic()
        self._terminal, self._open_line = self._out.isatty(), False

    def show(self, amount: int, bits: float) -> None:
        """Show the state after `amount` bytes. bits: mean bits of a byte so far."""
        now = time.monotonic()
        if not self._terminal and now - self._printed < PLAIN_SECONDS:
            return
        rate = (amount - self._before) / max(now - self._begun, 1e-9)
        text = f"read {amount:,} bytes  {bits:.3f} bits per byte  {rate:,.0f} bytes/s"
        bar = ""
        if self._total:
            left = duration(max(self._total - amount, 0) / max(rate, 1e-9))
            text, full = f"{text}  {left} left", min(BAR * amount // self._total, BAR)
            bar = f"[{'#' * full}{'.' * (BAR - full)}] "
        if self._terminal:
            self._out.write(f"\r\x1b[K{bar}{text}")
            self._out.flush()
            self._open_line = True
        else:
            print(text, file=self._out, flush=True)
        self._printed = now

    def done(self) -> None:
        """End the line of the bar."""
        if self._open_line:
            print(file=self._out, flush=True)
        self._open_line = False
