"""The oracles by name, and the error that says which of them was violated."""

from __future__ import annotations

ORACLES = {
    "live": "a handle shows what was stored through it, and refuses nothing that fits",
    "promised": "a call that is to make something durable says so when it returns",
    "acknowledged": "what was acknowledged is there, byte for byte, in order",
    "kept": "after a kill, everything completely stored is there",
    "issued": "every record found was issued and not discarded, and batches are whole",
    "verdict": "a crash leads to the rows R1, R2, R3 or R7 of the recovery table",
    "errors": "only documented errors",
    "open": "an open keeps what the verdict said",
    "twice": "recovery twice is recovery once",
    "interrupted": "after a crash in a recovery, the next one finds the same",
    "continued": "after a recovery, more appends, a crash and a recovery: what the first found, then the new records",
    "slot": "at rest, the loss of either of the two newest slots loses nothing",
    "damage": "damage is never silent, and never changes a record that is returned",
    "poisoned": "after a failed barrier the handle takes nothing more",
    "creation": "a file with the log's name is a whole log, and a log whose open returned has its name",
    "repaired": "after the loss of a sector of slots or of a superblock, a repair keeps exactly what was live",
    "beside": "beside a living writer a reader is shown what is durable, and nothing is called damaged",
    "named": "a handle whose file lost its name says so, once, and no other handle does",
    "aside": "a log that a crash left is never set aside",
    "slots": "a slot keeps its records from process to process, and is removed only while no process has it",
    "consumed": "what a named consumer has acknowledged durably stays so, and the log begins after it at the most, and reaches it",
}


class Violation(AssertionError):
    """An oracle was violated; ``oracle`` is its name in ``ORACLES``."""

    def __init__(self, oracle: str, detail: str) -> None:
        super().__init__(f"{oracle}: {ORACLES[oracle]}\n  {detail}")
        self.oracle = oracle
        self.detail = detail

    def renamed(self, oracle: str) -> Violation:
        """The same violation, found while another oracle was checked."""
        return Violation(oracle, f"{self.oracle}: {self.detail}")
