"""Making models: expert surgery on weight files. Only the command line and the API import it."""
