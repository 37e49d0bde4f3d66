"""Where samples come from: files, arrays, random stand-ins; and their labels."""
