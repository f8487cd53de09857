"""What makes the consumer a service: systemd, the journal and monitoring."""
