"""Track how stable regions form in a language model's residual stream."""
