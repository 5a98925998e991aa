"""Deliberate bugs that the crash simulator and the random histories must notice. Private, and imported by test rigs only.

Every name of the library that a mutant replaces is named in ``engine``, ``recovery`` or ``seam``; ``table`` says which oracle
must notice it.
"""
