"""The commands: arguments in, one call."""
