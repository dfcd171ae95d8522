"""Holdfast: a container daemon and library in which every container is a supervised actor.

The rooms, top to bottom; each imports only those below it:

    api           every way in: the embedded host, gRPC, the command line
    runtime       containers, tasks, shims, cgroups, network namespaces
    storage       metadata, content, snapshots, images, the event log
    supervision   who restarts whom
    actors        mailbox, loop, reference, refusals
"""
