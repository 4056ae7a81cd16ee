"""How the shipped weights of the embedded default were made: each part from scratch, on the train split of the scenes.

Every part is a script of its own that resumes where it was stopped and writes what it cost into its `card.json`.
"""
