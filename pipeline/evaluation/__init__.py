"""Measuring methods on pairs that no fit has seen."""
