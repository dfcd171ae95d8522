"""Every bound of the gRPC layer, with its unit."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server or channel allows. The defaults suit containerd's clients."""

    # The bound that containerd's clients and server have; larger is RESOURCE_EXHAUSTED.
    message_bytes_max: int = 16 << 20
    # A client such as dockerd holds one Wait per container on a single connection.
    streams_max: int = 100_000
    connections_max: int = 1024
    # What all calls of a connection may hold unread, whole and partial messages together.
    buffered_bytes_max: int = 256 << 20
    # Preface and settings must be here by then.
    handshake_within_s: float = 10.0
    # A connection without calls and bytes for so long is asked to leave, in peace.
    idle_within_s: float = 3600.0
    # A peer that takes none of our bytes for so long is cut off.
    write_within_s: float = 600.0
    # Streams that a peer may begin and take back: so many at once, so many a second after that.
    resets_burst: int = 1000
    resets_per_s: float = 100.0


# Not for tuning: the numbers that the flow control of stream.py and connection.py rests on.
STREAM_WINDOW_BYTES = 1 << 20  # per stream: the only back-pressure on a sender
CONNECTION_WINDOW_BYTES = 2**31 - 1  # never binds, so that no stream holds up another
FRAME_BYTES_MAX = 1 << 20  # grpc's C core uses it; grpc-go sends 16 KiB whatever we say
READ_BYTES = 64 << 10  # what is read at a time; what fills it is followed by a larger one,
READ_BYTES_MAX = 256 << 10  # up to what one peer may keep the loop busy with
UNSENT_BYTES_HIGH = 512 << 10  # the connection produces no more, and hears no more, above it
SEND_BYTES_HIGH = 256 << 10  # a handler waits while its stream has more than this unsent
CREDIT_BYTES_MIN = STREAM_WINDOW_BYTES // 4  # smaller window updates are not worth a frame
