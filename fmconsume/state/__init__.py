"""Marks of what was received, run and finished, in a folder that outlives the process."""
