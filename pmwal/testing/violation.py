"""What every crash must leave true, each under a name, and the error that says which of it is not."""

from __future__ import annotations

ORACLES = {
    "live": "a handle shows what was stored through it, and refuses nothing that there is room for",
    "promised": "a call that is to make something durable says so when it returns",
    "acknowledged": "what was acknowledged is there, byte for byte, in order",
    "kept": "after a kill all that was completely stored is there",
    "issued": "what is there was issued, batches whole, nothing that was discarded",
    "verdict": "a crash leads to the rows R1, R2, R3 or R7 of the recovery table",
    "errors": "only documented errors",
    "open": "an open keeps what the verdict said",
    "twice": "recovery twice is recovery once",
    "interrupted": "a crash in a recovery, and the next one finds the same",
    "continued": "append more after a recovery, crash, recover: what it found and then the new records",
    "slot": "at rest, the loss of either of the two newest slots loses nothing",
    "damage": "damage is never silent, and never changes what is handed out",
    "poisoned": "after a failed barrier the handle takes nothing more",
    "creation": "a file that has its name is a whole log, and one whose open returned has its name",
}


class Violation(AssertionError):
    """An oracle was violated; ``oracle`` is its name in ``ORACLES``."""

    def __init__(self, oracle: str, detail: str) -> None:
        super().__init__(f"{oracle}: {ORACLES[oracle]}\n  {detail}")
        self.oracle = oracle
        self.detail = detail

    def renamed(self, oracle: str) -> Violation:
        """The same, found while another oracle was tried."""
        return Violation(oracle, f"{self.oracle}: {self.detail}")
