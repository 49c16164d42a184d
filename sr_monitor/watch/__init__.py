"""Watch a training: when to measure, what to do with results, and what if something fails.

monitor = Monitor(prompts, writers=[TensorBoardWriter("runs/1")], log_dir="runs/1")
"""
