"""Where a request goes: pure functions of what is asked and what is known of each backend; no socket, no clock."""
