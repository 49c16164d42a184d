"""Run points of a probe's own, each prompt's in its own context.

    clean = run_points(run, share, prompts, points, see)

The points of a few prompts are made at once, by a function of their slice.
"""
