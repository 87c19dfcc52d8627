"""Where it runs: this machine as an engine sees it, and the catalogue of chips."""
