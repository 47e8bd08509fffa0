"""What a block means: encoding, identities, transactions, blocks, Merkle structures, contracts.

Pure: no clock, no I/O, no randomness in anything that executes. Where to look:

encoding      canonical MessagePack, the one way that signed or stored objects become bytes
keys          hashes and Ed25519 signatures, each under a tag of its own
node_cert     the X.509 certificate by which peers know a node
genesis       organisations, nodes, parameters; the chain id is its hash
transaction   envelopes, actions, ids, the stateless checks
block         headers and blocks
finality      votes, acknowledgements, certificates, the quorum
merkle        RFC 9162 trees: transactions, results, history
state_tree    the compact sparse Merkle tree over the state
execution     a committed block and a state in, results and changes out
contracts     one module a contract
receipt       what anyone can check offline
"""
