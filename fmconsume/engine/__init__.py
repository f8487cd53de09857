"""The engine: one supervisor thread that owns the connection, and workers that own nothing."""
