"""Files that commands write beside the log: complete and durable under their name, or not there at all."""

from __future__ import annotations

import builtins
import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO

from pmwal.storage.seam import SYSTEM


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A new file that takes the name if the block ends without an exception; until then the old file keeps it.

    What cannot be replaced, such as a FIFO or a terminal, is written to directly.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        with builtins.open(target, "wb") as file:
            yield file
        return
    directory, name = os.path.split(target)
    temporary = f".{name}.{secrets.token_hex(4)}"
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _create(temporary, directory_fd, path) as file:
            try:
                yield file
                file.flush()
                SYSTEM.sync_file(file.fileno())
                SYSTEM.replace(temporary, name, directory_fd)
            except BaseException:
                SYSTEM.unlink(temporary, directory_fd)
                raise
        SYSTEM.sync_file(directory_fd)
    finally:
        os.close(directory_fd)


def _create(name: str, directory_fd: int, path: str) -> BinaryIO:
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=directory_fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None  # not the temporary name, which the user never chose
    return builtins.open(fd, "wb")
