"""Whether graphs say what is true."""
