"""What happened: the schedule, the client, the event log, and every number computed from it."""
