"""Forms of experiments. They read what was typed; the services decide whether it can be."""
