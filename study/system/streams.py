"""Standard streams: all three are open, and the output streams survive their readers.

When `head` exits in `study.tune 2>&1 | head`, the study continues: output that nobody reads is
dropped at the lowest level, so prints by libraries, by threads and at Python's exit are safe, too.
Output that cannot be written for another reason, such as a full disk, is also dropped, with a
message on standard error.
"""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO

from study.system.redaction import cleaned


class _Lasting(io.FileIO):
    """A file that drops writes once its reader is gone."""

    gone = False
    failed = False

    def write(self, content: Any) -> int:
        """Write all bytes, or drop them."""
        view = memoryview(content).cast("B")
        left = view
        try:
            while left:  # unbuffered callers ignore a short write
                written = super().write(left)
                if written is None:  # another process made it non-blocking
                    select.select([], [self], [])
                left = left[written or 0 :]
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for child processes, too
            os.close(nowhere)
            self.gone = True
        except OSError as error:
            if not self.failed and self.fileno() == 1:
                with suppress(OSError):
                    os.write(2, f"cannot write to standard output ({error.strerror})\n".encode())
            self.failed = True
        return view.nbytes


def open_streams() -> None:
    """Open closed standard streams on `/dev/null`, or the next file opened would become one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = open(number, "r" if number == 0 else "w", closefd=False, encoding="utf-8")
            setattr(sys, name, stream)


def outlive_readers() -> None:
    """Let this process continue when the reader of its output exits."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:  # not a notebook's or a test's
            stream.flush()
            raw = _Lasting(stream.fileno(), "w", closefd=False)
            lasting = io.TextIOWrapper(
                # Stay unbuffered if the stream was, as with `python -u`.
                raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)
            setattr(sys, f"__{name}__", lasting)


def reader_gone(stream: TextIO) -> bool:
    """Return whether the reader of a stream of `outlive_readers` is gone."""
    buffer = getattr(stream, "buffer", None)
    return getattr(getattr(buffer, "raw", buffer), "gone", False) is True


def write_line(text: str) -> None:
    """Write a line to standard error at once; safe in signal handlers."""
    with suppress(OSError):  # nobody reads it
        os.write(2, f"\n{cleaned(text)}\n".encode())
