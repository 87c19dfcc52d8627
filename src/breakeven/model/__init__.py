"""What is compared: architectures and weight formats, where a description comes from, and the arithmetic on shapes."""
