"""Opening a log to read it."""

from __future__ import annotations

import os
from functools import partial

from pmwal.opening.files import check_geometry, map_for_reading
from pmwal.opening.options import Options
from pmwal.reading.reader import Reader
from pmwal.storage.seam import Seam


def open_reader(path: str, options: Options, seam: Seam) -> Reader:
    """A reader of the log with these options."""
    mapping, identity = map_for_reading(path, options.medium, seam, around=options.salvaging)
    try:
        check_geometry(path, identity.block, options)
        again = partial(map_for_reading, os.path.realpath(path), options.medium, seam)
        return Reader(path, mapping, identity, seam, salvaging=options.salvaging, open_again=again)
    except BaseException:
        mapping.close()
        raise
