"""Measures fmconsume against other clients: `make bench`."""
