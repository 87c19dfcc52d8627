"""Schedules: how they are drawn, read from traces, saved and cut."""
