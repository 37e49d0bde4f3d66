"""Where results go: files that appear whole, at once, and only where all is well."""
