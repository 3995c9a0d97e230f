"""Workloads of `benchmarks.bench` in seqjax and in other libraries (peers), each in a process of its own.

cases       cell and sizes of a layer, its arrays, random sizes
ours, flaxes, kerases, torches   the workloads of a library, one class with the same methods each
jaxes       common code of the libraries on JAX
worker      process that runs workloads, one request per line
client      starts a worker and sends requests
bench_config   sizes and numbers of measurements
measure     the parts of the benchmark: pilots and rounds
machine     installed libraries, cores, versions
scores      ratios and their quartiles, exponents, checks
table       results as Markdown and as a figure
keras_td    training of the notebook as a Keras script
"""
