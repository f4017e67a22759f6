"""Properties here run in milliseconds; a deadline would only measure the machine."""

from hypothesis import settings

settings.register_profile("tokens", deadline=None)
settings.load_profile("tokens")
