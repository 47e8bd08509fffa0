"""What the ledger does in a second, and what a transaction costs. `make bench`, or `python -m bench`.

__main__    starts networks of real daemons, one after the other, measures windows of load, writes build/bench.json
load        a load process: signs beforehand, then keeps transactions in flight at one node
workload    what a load process is told, and the transactions it makes
gauges      processor time of a daemon, its /metrics, and the price of one signature verification
report      the figures, and the table that shows them

Nothing in here is imported by the product, and it looks at daemons only from outside: their provider port,
/metrics and /proc.
"""
