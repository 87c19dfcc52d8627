"""What is said: public results by schema, and the store that reads and writes them."""
