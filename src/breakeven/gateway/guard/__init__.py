"""What keeps one bad backend or one greedy client from spoiling it for all: pure state machines."""
