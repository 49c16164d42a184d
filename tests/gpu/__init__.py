"""What only a GPU can show: checks on CUDA, and what a measurement costs there; `make gpu`."""
