"""x"""
from typing import NamedTuple
class Mutant(NamedTuple):
    engine: str
    what: str
    oracle: str
    histories: tuple
MUTANTS: dict[str, Mutant] = {}
def survives(m: Mutant) -> str: return ""
