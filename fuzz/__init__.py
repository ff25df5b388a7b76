"""Fuzzing of every parser that is fed by strangers; see README.md."""
