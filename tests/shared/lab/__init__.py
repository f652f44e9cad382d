"""Modules that a user might write, named in a task's file by a dot."""
