"""containerd's services, a file each: they translate between messages and the rooms' verbs.

**Invariant:** nothing is decided here and nothing is kept; a service holds the verbs it calls.
"""
