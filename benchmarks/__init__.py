"""Timings against published training loops; run by hand, never by a test (see README.md)."""
