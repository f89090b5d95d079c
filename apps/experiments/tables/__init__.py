"""How a stored result reads. Pure: no number is computed here, only worded.

What does not exist reads as a dash, never as 0.
"""
