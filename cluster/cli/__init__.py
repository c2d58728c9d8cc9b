"""The `restorl` command."""
