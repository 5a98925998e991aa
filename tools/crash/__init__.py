"""The rigs that cut the power of real kernels and real instructions, and judge what pmwal recovers from what is left."""
