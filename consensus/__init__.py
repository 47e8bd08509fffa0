"""Raft as a pure state machine: which block stands at which height, and when that is final.

| module                       | what it holds                                                               |
|------------------------------|-----------------------------------------------------------------------------|
| `core`                       | RaftCore: inputs, `Ready`                                                   |
| `elections`                  | terms and roles, votes and campaigns                                        |
| `leader`, `follower`         | what a node does and remembers in that role, and only there                 |
| `progress`                   | what a leader knows of one follower                                         |
| `membership`, `transfer`     | when a leader may change the members; to whom it may hand over              |
| `reads`, `answers`           | linearizable reads, without clocks                                          |
| `caution`                    | may this node vote, for all that its disk may have forgotten?               |
| `commit`                     | acknowledgements, certificates, the commit height                           |
| `log`, `writes`              | blocks by height, and how much of that is on the disk                       |
| `outbox`                     | messages, held until the term and vote they speak of are durable            |
| `configuration`              | quorums; who votes, as a function of the log prefix                         |
| `chains`                     | does a message hang together?                                               |
| `messages`, `ports`, `errors`| frozen values; what the shell provides; three kinds of wrong                |
| `timeouts`, `parts`          | seeded election timeouts; what all roles share                              |

Nothing here reads a clock, a socket, a file or a random source. docs/consensus.md has the rules.
"""
