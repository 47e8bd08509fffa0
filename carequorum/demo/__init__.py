"""The demonstration: four hospitals, sealed histories, a killed leader, and every promise checked.

`python -m carequorum.demo` is what `make demo` runs. The parts are separate processes, as they would be in life:

staging    (here)     starts the network, registers clinicians and patients, kills the leader, stops everything
writer     one each   a hospital's importer; notes each transaction the moment it is answered as committed
auditor    one        asks every node about every noted transaction, and saves the receipts
reader     one        opens every record as its patient, at another hospital, and compares with the source
verifier   one        with the network stopped: verifies the receipts with nothing but the genesis file
check      one each   `carequorum check` on a stopped node's store

They share a folder: `plan.json` says who writes what for whom, `committed/` holds what the writers noted.
"""
