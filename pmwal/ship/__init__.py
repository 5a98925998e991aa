"""Shipping: the records of logs are sent to other systems, and acknowledged when these have them."""
