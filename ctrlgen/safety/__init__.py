"""Safety: corrections that keep a controlled density inside a set."""
