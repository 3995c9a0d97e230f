"""Kinds of data: arrays -> what a run learns from, a file a kind."""
