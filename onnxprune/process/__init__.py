"""The command's own process: the signals that end it, its streams, its temporary files. The library has none of it."""
