"""How long what grows is kept: `declared` lists the kinds, `drops` knows how each is dropped, and
`run` does it bit by bit and keeps what was freed.
"""
