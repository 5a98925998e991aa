"""What every rig raises when a log breaks a promise."""

from __future__ import annotations


class Violation(Exception):
    """A state or an answer that pmwal's promises rule out. ``kind`` is one word for it, where a rig tells kinds apart."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind
