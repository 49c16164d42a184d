"""What is measured: one file for each quantity, and the mathematics they share.

paths = measure_paths(model, prompts_a, prompts_b)
"""
