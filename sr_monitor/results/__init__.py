"""What is kept of a measurement: a record, and the folder of a run's records."""
