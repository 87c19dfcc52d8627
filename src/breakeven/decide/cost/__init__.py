"""`breakeven cost`: candidates predicted, simulated and priced over load."""
