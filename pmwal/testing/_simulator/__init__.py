"""The crash simulator of ``pmwal crashsim``: histories, their crash images, and the oracles that judge them. Private."""
