"""What the gateway's processes know together: one block of memory, one writer a cell."""
