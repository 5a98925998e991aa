"""The parts of ``pmwal demo``: a writer that is killed repeatedly, and the check that nothing it acknowledged was lost."""
