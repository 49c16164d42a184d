"""What is measured: one file for each quantity, and the mathematics they share."""
