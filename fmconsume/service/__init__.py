"""Connects the consumer to systemd, the journal and monitoring."""
