"""Rigs that cut the power of real kernels and real instructions, and look at what pmwal makes of what is left."""
