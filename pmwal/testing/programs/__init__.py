"""Crashes of a user's own program: ``run(path)`` once, ``check(path, done)`` after every crash that may have ended it."""
