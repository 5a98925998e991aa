"""The parts of tools/stress.py: processes that use one log, kills, acknowledgements kept outside, and the check of them."""
