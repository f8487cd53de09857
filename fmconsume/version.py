"""The version of fmconsume, read by setup.cfg and by the package; any thread."""

__version__ = "0.1.0"
