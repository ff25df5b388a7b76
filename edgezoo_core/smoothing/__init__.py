"""From a model and calibration text to what its recipe folds.

activations    the model reads the text, a layer in memory at a time
choice         for each fold, the factors that lose least in the weights' own formats
passage        the text, as tokens
"""
