"""How saved weights are read, one file for each format."""
