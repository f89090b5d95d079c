"""Attacks by name, against real servers; `./run attack` runs the long ones."""
