"""Quotas that hold for the whole fleet: who may use which part, and how tokens move.

`ledger` is shared by the workers of an instance, `script` is the state that all instances share in
Redis, and `leases` moves tokens between the two. `bucket` is the quota of a single process.
"""
