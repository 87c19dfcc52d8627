"""The best model for a machine and a use, out of everything that is catalogued."""
