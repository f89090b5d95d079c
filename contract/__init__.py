"""What the two planes say to each other: documents, messages and the bucketing function.

Pure Python on msgspec. It imports neither plane, does no I/O and reads no clock, so that both
sides can run the same code on the same bytes. `SCHEMA` is the version of everything here; a reader
refuses a document whose schema it does not know.
"""

SCHEMA = 1
