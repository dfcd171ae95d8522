"""Actors on trio: mailbox, loop, reference, exit reasons, links, monitors, names, refusals."""
