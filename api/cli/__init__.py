"""The `holdfast` command: a client of the API socket, with Docker's conventions where they exist.

main        the group, its options, how errors end
session     one connection, or an embedded host where no daemon answers
output      tables and JSON
stdio       FIFOs, terminals, window sizes
run         run, exec, attach
containers  ps, wait, kill, pause, resume, rm, logs
images      images, import, export
pull        pull, push
login       login, logout
transfers   a call of Transfer with its streams; credentials that the daemon asks for
progress    how far it is: bars, lines, JSON
stores      snapshots, content
system      info, version, tree, crashes, events, completion
"""
