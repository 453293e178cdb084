"""Measuring what was generated."""
