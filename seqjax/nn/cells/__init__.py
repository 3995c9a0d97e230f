"""Recurrent cells, a file a family."""
