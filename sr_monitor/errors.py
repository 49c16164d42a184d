"""The one error a user can cause: `InputError`.

Everything the library refuses because of what it was given is an `InputError`: a `ValueError`
whose message restates the call, shows both sides of the mismatch and names the fix. The command
line prints it in one line and ends with status 2; any other exception is a bug of ours.

    raise InputError("measure_paths(num_steps=1): `num_steps` must be at least 2")
"""


class InputError(ValueError):
    """What was asked for cannot be done; the message says why and names the fix."""
