"""Measurements of the gateway's own cost: a command per table."""
