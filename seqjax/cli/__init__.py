"""The commands of seqjax, by name."""
