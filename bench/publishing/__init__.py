"""The setup of `bench publication`: models, live rollouts, and a polling fleet."""
