"""The command line: the only user of click, one file per command."""
