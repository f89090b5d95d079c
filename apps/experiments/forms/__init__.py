"""Forms of experiments. Forms parse input; services decide whether it is allowed."""
