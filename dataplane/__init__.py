"""The prediction proxy: routes, batches and answers predictions from the routing table it pulls.

It keeps no state that it cannot rebuild. It imports `contract` and must not import the control
plane.
"""

VERSION = "0.1.0"
