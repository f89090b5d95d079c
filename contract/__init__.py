"""Documents, messages and functions that the control plane and the data plane share.

Pure Python on msgspec. It must not import either plane, do I/O or read a clock, so that both planes
run the same code on the same bytes. `SCHEMA` is the version of everything here; a reader refuses a
document whose schema it does not know.
"""

SCHEMA = 1
