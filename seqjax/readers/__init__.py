"""Files of people -> arrays, each through a library made for its format: a file a format."""
