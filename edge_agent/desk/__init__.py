"""Behind a technician's commands: bookings by hand, taking back, imports, search, what tracking asks for."""
