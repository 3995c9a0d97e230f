"""Recurrent cells: simple, GRU, LSTM and linear, one module per family, and their base classes."""
