"""The daemon of one organisation. Where to look:

daemon       its life: configuration, keys, ports, signals, exit codes
node         every part built and joined
driver       carries out what the consensus core decides
intake       what peers send the core, verified and made whole; `inspector` judges their blocks
maker        what this node signs; `proposer` when it makes a block
executor     certified blocks, in order
catchup      certified blocks from any peer, for a node far behind
admission    the one way into the `pool`
peering      what peers ask of this node; `backend` what clients ask
http_api     the provider port
"""
