"""The options of the commands: one file per group of them, of which each command takes those that it has."""
