"""What ``pmwal demo`` runs: a writer that is killed again and again, and the check that nothing it acknowledged was lost."""
