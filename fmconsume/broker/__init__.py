"""All that knows AMQP or pika: for consuming, for publishing and for checking."""
