"""The commands of `uae`, one a file: options, and what is done with them."""
