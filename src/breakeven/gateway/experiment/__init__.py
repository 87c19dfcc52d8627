"""Two backends on the same traffic: who gets which, what differed, and when it is enough."""
