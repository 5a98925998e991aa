"""The crash simulator behind ``tools/crashsim.py``: histories, their crash images, and the oracles that judge them. Private."""
