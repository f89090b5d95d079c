"""Pure statistics of experiments: numbers in, numbers out, nothing read or stored."""
