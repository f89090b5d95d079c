"""Import outcomes from files: rows are checked one by one and recorded in bounded steps."""
