"""What it costs: money and energy as functions of load. Pure arithmetic on capacities, prices and power."""
