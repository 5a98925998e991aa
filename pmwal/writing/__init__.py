"""Storing records and making them durable: engines, the writer's handle, batches, space, background commits."""
