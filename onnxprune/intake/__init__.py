"""What is read from outside is checked here before anything trusts it."""
