"""A causal language model, cut open: its blocks, its residual stream, on one process or several.

with open_session(model, prompts, options) as session:
session.engine.distances(...)
"""
