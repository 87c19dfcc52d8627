"""Weight formats: which number type every tensor gets, and how many bytes that is."""
