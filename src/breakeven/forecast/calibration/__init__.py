"""From probes to constants: which small models to run, the fit, and how far it is off on what it has not seen."""
