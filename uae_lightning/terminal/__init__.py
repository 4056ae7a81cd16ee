"""What people see of a command under way."""
