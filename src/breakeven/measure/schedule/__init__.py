"""Schedules: how they are drawn, read from traces, saved and cut."""

from breakeven.measure.schedule.draw import ARRIVALS, draw
from breakeven.measure.schedule.file import load_schedule, save_schedule
from breakeven.measure.schedule.lengths import LENGTHS
from breakeven.measure.schedule.part import part
from breakeven.measure.schedule.plan import DEPENDS, Planned, Schedule

__all__ = ["ARRIVALS", "DEPENDS", "LENGTHS", "Planned", "Schedule", "draw", "load_schedule", "part", "save_schedule"]
