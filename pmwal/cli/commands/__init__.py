"""The commands, one module each, named after it: ``add`` describes the options, ``run`` returns the exit status."""
