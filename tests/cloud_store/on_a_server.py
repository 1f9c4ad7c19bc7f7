"""How many examples hypothesis tries on a real database."""

from hypothesis import HealthCheck, settings

ON_A_SERVER = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
