"""The file that ships against the model that it was made from.

A reference and a subject read the same passage, in turn, each leaving what it computed on disk
(`reference`, `subject`, `runs`); `measures` says how far they are apart, `weights` how far each
stored row is from its source, and `report` whether that will do.
"""
