"""gRPC over HTTP/2 on trio: server and client, unix sockets, no thread and no second event loop.

    limits      every bound in one frozen dataclass
    codec       bytes and headers: message frames, timeouts, statuses, metadata; plain functions
    headers     blocks of headers, to and from bytes
    http2       frames, windows, states: bytes in, what they mean out; plain, too
    stream      one HTTP/2 stream: its inbox, its output, its flow control
    connection  one socket: a reader that waits for nobody, a writer that alone sends
    call        what a handler sees: metadata, peer, `recv`, `send`
    service     methods by path, from a service's descriptor and its handlers
    server      accepts, starts handlers, tells statuses, drains
    client      Channel: unary calls and streams

Hazards that shaped the code are told where the code meets them.
"""
