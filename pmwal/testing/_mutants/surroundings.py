"""Broken surroundings: a lost name that nobody notices, a name taken from another file, a healthy log set aside.

Patches ``LogName.lost``, ``_Identity.same_file`` in ``pmwal.storage.name``, ``Recorder.rename_new``, and ``_is_corrupt`` in
``pmwal.logs.set_aside``.
"""

from __future__ import annotations

import importlib

from pmwal.storage import name as name_module
from pmwal.storage.name import LogName
from pmwal.storage.seam import Seam
from pmwal.testing._mutants.seam import Patch
from pmwal.testing.recorder import Recorder, Step

set_aside_module = importlib.import_module("pmwal.logs.set_aside")


def loss_unnoticed() -> list[Patch]:
    """Never look whether the path leads to the log."""
    return [Patch(LogName, "lost", lambda self: None)]


def replacement_unnoticed() -> list[Patch]:
    """Take any file with the log's name for the log."""
    return [Patch(name_module._Identity, "same_file", lambda self, other: True)]


def name_taken_over() -> list[Patch]:
    """Name a new log by a rename that replaces another file."""

    def rename(self: Recorder, source: str, target: str, directory_fd: int) -> None:
        self.note(Step("rename"))
        Seam.replace(self, source, target, directory_fd)

    return [Patch(Recorder, "rename_new", rename)]


def healthy_set_aside() -> list[Patch]:
    """Set a log aside without judging it under its lock."""
    return [Patch(set_aside_module, "_is_corrupt", lambda name, seam: True)]
