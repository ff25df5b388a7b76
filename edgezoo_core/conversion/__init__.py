"""From an authored model to a quantized .tflite: the graph is compiled once, the weights stream.

The data go one way:

    standins, shallow -> tracing -> floatgraph     a signature's graph, without weights
    stamping -> merging -> thin                    all layers, all signatures, quantized
    assembly -> program                            the skeleton of the file, and its row program
    streaming, rows                                rows of the checkpoint, into the file
    checking                                       the file, read again

`litert` is litert-torch's own path, which holds the model in memory: the oracle.
"""
