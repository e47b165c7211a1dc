"""What holds for every test."""

from hypothesis import settings

# The same examples every time, and no verdict by the clock: `make test` must say the same of the same code.
# New examples are looked for by hand, with `--hypothesis-profile default`.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
