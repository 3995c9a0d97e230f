"""What `benchmarks.bench` measures: the same work here and in other libraries, each in a process of its own.

cases       the sizes of a layer, its arrays, sizes drawn at random
ours, flaxes, kerases, torches   the work, a file a library, one class with the same methods each
jaxes       what the three share that run on JAX
worker      the process that does the work, a request a line
client      the end of the line that asks
scores      ratios and their spread, exponents, the gates
table       the scores for a person: Markdown, a picture
keras_td    a run of the notebook's as a Keras script
"""
