"""`uae cache`: what decoder pre-training reads, computed once.

shards.py       how samples lie in safetensors files
fingerprint.py  what made them, and how that differs from what a stage would make
folder.py       what in a folder is of a cache, and who may write to it
writing.py      pictures and captions -> shards; goes on where it was stopped
command.py      the command
"""
