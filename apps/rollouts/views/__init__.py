"""Pages about traffic: what serves, rollouts, plans, the fleet."""
