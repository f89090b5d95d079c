"""A thousand models, hundreds of live rollouts, and a fleet that polls: for `bench publication`."""
