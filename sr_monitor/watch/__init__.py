"""A training, watched: when to measure, and what happens if something fails.

monitor = Monitor(prompts, writers=[TensorBoardWriter("runs/1")], log_dir="runs/1")
"""
