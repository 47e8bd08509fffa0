"""Raft as a pure state machine: which block stands at which height, and when that is final.

| module                       | what it holds                                                               |
|------------------------------|-----------------------------------------------------------------------------|
| `core`                       | RaftCore: inputs, `Ready`, terms, elections                                 |
| `leader`, `follower`         | what a node does and remembers in that role, and only there                 |
| `progress`                   | what a leader knows of one follower                                         |
| `commit`                     | acknowledgements, certificates, the commit height                           |
| `log`, `writes`              | blocks by height, and how much of that is on the disk                       |
| `outbox`                     | messages, held until the term and vote they speak of are durable            |
| `configuration`              | quorums; who votes, as a function of the log prefix                         |
| `chains`                     | does a message hang together?                                               |
| `messages`, `ports`, `errors`| frozen values; what the shell provides; three kinds of wrong                |
| `timeouts`, `parts`          | seeded election timeouts; what all roles share                              |

Nothing here reads a clock, a socket, a file or a random source. docs/consensus.md has the rules.
"""
