"""Scores of many harnesses, and the fit that puts them on one scale with an error."""
