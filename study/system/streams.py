"""Standard streams: all three are open, and output and error outlive their readers.

When `head` ends in `study.tune 2>&1 | head`, the study goes on: output that nobody reads is dropped
at the lowest level, so prints by libraries, by threads and at Python's exit do no harm either.
Output that cannot be written for another reason, such as a full disk, is dropped too, and standard
error says so.
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
    """A file whose writes go nowhere once its reader is gone."""

    gone = False
    failed = False

    def write(self, content: Any) -> int:
        """Write all bytes, or drop them."""
        view = memoryview(content).cast("B")
        left = view
        try:
            while left:  # what is without a buffer above looks at no count
                written = super().write(left)
                if written is None:  # another process has made it non-blocking
                    select.select([], [self], [])
                left = left[written or 0 :]
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for what is started from now on as well
            os.close(nowhere)
            self.gone = True
        except OSError as error:
            if not self.failed and self.fileno() == 1:
                with suppress(OSError):
                    os.write(2, f"cannot write to standard output ({error.strerror})\n".encode())
            self.failed = True
        return view.nbytes


def open_streams() -> None:
    """Give closed standard streams to `/dev/null`: the next file opened would be taken for one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = open(number, "r" if number == 0 else "w", closefd=False, encoding="utf-8")
            setattr(sys, name, stream)


def outlive_readers() -> None:
    """Have this process go on when whoever reads its output ends."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is io.TextIOWrapper:  # not that of a notebook or a test
            stream.flush()
            raw = _Lasting(stream.fileno(), "w", closefd=False)
            lasting = io.TextIOWrapper(
                # Without a buffer, as with `python -u`, there is none here.
                raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw),
                encoding=stream.encoding,
                errors=stream.errors,
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, lasting)
            setattr(sys, f"__{name}__", lasting)


def reader_gone(stream: TextIO) -> bool:
    """Return whether nobody reads a stream of `outlive_readers` any more."""
    buffer = getattr(stream, "buffer", None)
    return getattr(getattr(buffer, "raw", buffer), "gone", False) is True


def write_line(text: str) -> None:
    """Write a line to standard error at once; a signal's handler may do it too."""
    with suppress(OSError):  # nobody reads it
        os.write(2, f"\n{cleaned(text)}\n".encode())
