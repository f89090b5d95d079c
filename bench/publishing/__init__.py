"""The setup of `bench publication`: 1,000 models, hundreds of live rollouts, and a polling fleet.
"""
