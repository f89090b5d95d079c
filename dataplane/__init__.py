"""The predict proxy: routes, batches and answers predictions from a routing table it pulled.

It keeps nothing that it cannot rebuild. It imports `contract` and never the control plane.
"""

VERSION = "0.1.0"
