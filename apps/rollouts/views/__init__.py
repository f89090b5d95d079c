"""Pages of models, rollouts, plans, releases, rules, tenants and the fleet."""
