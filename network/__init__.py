"""Peer links: how nodes reach each other. Mutual TLS 1.3, pinned certificates, typed and bounded messages.

Where to look:

port          what this room asks of the node (Handler, Counters), and the values that cross that border
messages      the one table of message kinds: number, shape, stream, size
frames        messages cut into frames of bounded size, and put together again
outbox        what waits to be sent to one peer, by priority, with its bound
tls           contexts, pins, who a peer is
greeting      hello and goodbye: how a connection begins and why it ends
links         the connections this node dials, on which it only sends
server        the connections this node accepts, on which it only receives
gossip        transactions pushed, announced and fetched
sync          blocks and bodies, asked for and answered
peer_network  all of it together: `PeerNetwork`
"""
