"""From a model and calibration text to what its recipe folds, and to its weights as integers.

passage        the text, as tokens
activations    the model reads it, the weights of a layer in memory at a time
folding        what is folded: for each fold the factors that lose least
choice         one fold: its candidates, judged
compensation   all weights, rounded by what they read
rounding       one weight
"""
