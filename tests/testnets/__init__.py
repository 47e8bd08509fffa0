"""The fault table: a network that is broken on purpose, one fault after the other, under load.

    python -m tests.testnets --backend netns|docker|process      `make netns-test`, `make docker-test`

rows        the faults, each a function that breaks the network and mends it
trial       what a row needs: the network, the load, the chain; and how a row is measured
load        clinicians who write the demo's resources over and over, each through its own node
chain       the chain as one node serves it, read once, and what it holds
stranded    what a node without a majority answers
figures     the figures of a row, the promises, the table
tools       what the machine must have
"""
