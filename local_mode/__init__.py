"""Serve, probe and make small models on one machine, without a cloud account."""
