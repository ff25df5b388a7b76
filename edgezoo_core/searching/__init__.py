"""The recipe that keeps a promise: smallest, fastest, or least lossy.

promise        what may be lost, and what is to be small then
sensitivity    what each choice for each part of each layer loses by itself
options        the choices: parts that share one, formats, sizes, work
solver         which to take, if losses add up
mixture        the recipe that a solution is
trials         files that were examined, and what to try next
chart          the picture of it
"""
