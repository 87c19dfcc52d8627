"""What the operator typed, as frozen data: backends, public models and their policies, listeners, experiments."""
