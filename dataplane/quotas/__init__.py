"""A quota is one number for the fleet: what each part may use of it, and how that moves.

`ledger` is what the workers of an instance share, `script` what all instances share in Redis, and
`leases` moves tokens between the two. `bucket` is a quota of one process by itself.
"""
