"""What a measurement costs; run by `make bench`."""
