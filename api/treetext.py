"""The live tree as its message, and as text for people: the same for a host and for its clients."""

from ..supervision.tree import Node
from .proto.services import admin_pb2 as pb

STUCK_S = 1.0  # a message that is handled for longer is shown with its age


def node_to(node: Node) -> pb.TreeNode:
    return pb.TreeNode(
        name=node.id,
        kind=node.kind,
        state=node.state,
        restarts=node.restarts,
        mailbox=node.mailbox_depth,
        current=node.current or "",
        current_age_s=node.current_age_s,
        children=[node_to(child) for child in node.children],
    )


def tree_lines(node: pb.TreeNode, lead: str = "", branch: str = "") -> list[str]:
    """The tree as text, a node a line."""
    facts = [node.state]
    if node.restarts:
        facts.append(f"{node.restarts} restart{'s' if node.restarts != 1 else ''}")
    if node.mailbox:
        facts.append(f"{node.mailbox} waiting")
    if node.current and node.current_age_s >= STUCK_S:
        facts.append(f"{node.current} for {node.current_age_s:.1f} s")
    lines = [f"{lead}{branch}{node.name}  {', '.join(facts)}"]
    below = lead + {"├─ ": "│  ", "└─ ": "   "}.get(branch, "")
    for number, child in enumerate(node.children, 1):
        last = number == len(node.children)
        lines += tree_lines(child, below, "└─ " if last else "├─ ")
    return lines
