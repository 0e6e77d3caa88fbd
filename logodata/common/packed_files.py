"""Read files of text that are compressed (gzip, zstd) or in another encoding, as a stream of bytes in UTF-8."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from logodata.common.errors import SettingError, UserError, first_line
from logodata.common.user_files import NAME_ENCODING, decode_utf8, marked_encoding

_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
PACKED_SUFFIXES = (".gz", ".zst")

MOST_TIMES, FREE_BYTES = 200, 256 * 2**20
"""How many times its size a file may unpack to, and what any file may unpack to. Text becomes 3 to 30 times smaller."""

_BLOCK = 2**16


def text_suffix(file: PurePath) -> str:
    """Return the extension of a file in lower case, and that of its content if it is compressed: ``.jsonl`` of
    ``my.jsonl.gz``."""
    suffix = file.suffix.lower()
    return PurePath(file.stem).suffix.lower() if suffix in PACKED_SUFFIXES else suffix


def packing(file: Path) -> str:
    """Return how a file is compressed: ``gzip``, ``zstd``, or empty."""
    with open(file, "rb") as handle:
        head = handle.read(4)
    return next((name for magic, name in _PACKED.items() if head.startswith(magic)), "")


def open_unpacked(file: Path, shown: str) -> BinaryIO:
    """Open a file for reading, and unpack it while it is read. Messages call it ``shown``.

    Raises:
        UserError: While it is read: it is cut off or damaged, or unpacks to more than :data:`FREE_BYTES` and
            :data:`MOST_TIMES` its size.
    """
    method = packing(file)
    return io.BufferedReader(_Unpacked(file, shown, method)) if method else open(file, "rb")


def open_utf8(file: Path, shown: str, encoding: str | None) -> tuple[BinaryIO, str]:
    """Open a file, compressed or not, as text in UTF-8, and return it with its encoding, which is empty for UTF-8.

    The encoding is that of a byte order mark, else UTF-8 where the whole file is, else ``encoding``.

    Raises:
        UserError: While it is read: as :func:`open_unpacked`, or it is not in that encoding.
    """
    with open_unpacked(file, shown) as handle:
        name = marked_encoding(handle.read(4))
    if name is None and (encoding is None or _is_utf8(file, shown)):
        return open_unpacked(file, shown), ""
    name = name or encoding
    assert name is not None
    return io.BufferedReader(_Recoded(open_unpacked(file, shown), shown, name)), name


def _is_utf8(file: Path, shown: str) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_unpacked(file, shown) as handle:
        try:
            decode_utf8(handle.read(_BLOCK).rpartition(b"\n")[0])  # finds UTF-16 without a mark
            handle.seek(0)
            for block in iter(lambda: handle.read(_BLOCK), b""):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except ValueError:
            return False
    return True


class _Unpacked(io.RawIOBase):
    """The content of a compressed file. ``seek(0)`` begins again."""

    def __init__(self, file: Path, shown: str, method: str) -> None:
        self._file, self._shown, self._method = file, shown, method
        self._most = max(FREE_BYTES, MOST_TIMES * file.stat().st_size)
        self._begin()

    def _begin(self) -> None:
        import pyarrow as pa

        self._stream = pa.CompressedInputStream(pa.OSFile(os.fsencode(self._file)), self._method)
        self._size = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset not in (0, self._size):
            raise io.UnsupportedOperation("a compressed file is read from its start")
        if offset != self._size:
            self._stream.close()
            self._begin()
        return offset

    def tell(self) -> int:
        return self._size

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            mend = "copy it anew"
            raise UserError(f"cannot be unpacked: {first_line(error)}", where=self._shown, mend=mend) from error
        buffer[: len(data)] = data
        self._size += len(data)
        if self._size > self._most:
            what = f"unpacks to more than {MOST_TIMES} times its size"
            raise UserError(what, where=self._shown, mend="no text does; if it is yours, unpack it first")
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


class _Recoded(io.RawIOBase):
    """A text of another encoding, in UTF-8. It is read once."""

    def __init__(self, handle: BinaryIO, shown: str, encoding: str) -> None:
        self._handle, self._shown, self._encoding = handle, shown, encoding
        self._blocks, self._left = self._recode(), b""

    def _recode(self) -> Iterator[bytes]:
        decoder = codecs.getincrementaldecoder(self._encoding)()
        line = 1
        while True:
            data = self._handle.read(_BLOCK)
            try:
                text = decoder.decode(data, final=not data)
            except ValueError as error:
                what = f"not {self._encoding}, in line {line} or after it"
                raise SettingError(what, where=self._shown, **NAME_ENCODING) from error
            line += text.count("\n")
            yield text.encode("utf-8", "surrogatepass")
            if not data:
                return

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._left = block
        data, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._handle.close()
        super().close()
