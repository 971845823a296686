"""Picklable callables, one Arrow block in, one block out; they know nothing of Ray."""
