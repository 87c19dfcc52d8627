"""What is asked: arrivals, lengths, sessions, traces and prompts; the schedule drawn once."""
