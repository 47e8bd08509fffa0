"""What a node keeps on its disk, and how it is checked. Where to look:

port      the key-value port, and the one exception for a disk that fails or lies
leveldb   the port by LevelDB: one database, synced batches in order, checksums verified
schema    every key and every record of the database
log       the Raft log: blocks, their links, hard state, bodies, each persisted in one synced batch
executed  what follows from the log: state, tree, history, results, certificates; one batch a block
store     the two together: what the daemon opens, reads, and makes receipts from
base      where the kept log begins: pruning moves it up
index     which results the index of transactions remembers, and for how long it must
snapshot  what a node must hold to go on from one height, as a stream of records in chunks, and what proves it
shelf     snapshots as files: taken, kept, fetched
install   a snapshot into an empty database, verified as it comes
swap      how a store that was built so takes the place of the old one
pruned    how a pruned store is checked, as if it were installed from itself
check     everything read again and derived again from genesis
boot      the same, bounded, before a node uses its store
heights   what one height must hold by itself; for both
files     the files of a database, every byte verified without LevelDB, by what `formats` says of them
report    what a check finds: height, record, file

Threads: `BlockLog.persist` and `Executed.write` may run in one dedicated writer
thread while everything else runs in the event loop's thread. How no read sees half of a write is said in
`executed`.
"""
