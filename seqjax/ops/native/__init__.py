"""Kernels in C++ for CPUs, called by `jax.ffi`: the fastest backends of `seqjax.ops.lstm` and `seqjax.ops.gru` there.

`library` compiles and loads `recurrent.cc`; `recurrent` has the backends.
"""
