"""Statistics of experiments as pure functions, which read and store nothing."""
