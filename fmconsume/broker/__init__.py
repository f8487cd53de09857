"""All modules that know AMQP or pika: for consuming, for publishing and for checking."""
