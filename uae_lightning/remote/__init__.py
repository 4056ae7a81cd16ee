"""Servers that are asked over HTTP: requests with bounded retries, and a memory of what was answered."""
