"""Scenarios: exact interleavings of real cores, told line by line. tests/sim/scenarios/ holds them.

| module         | what it holds                                                             |
|----------------|---------------------------------------------------------------------------|
| `script`       | one file: story, commands, transcript; how it is performed                |
| `commands`     | what each word does; `expectations` what `expect` looks at                |
| `stage`        | the cores, their disks and the network, which do nothing unless told      |
| `forge`        | messages that no core of the story sent                                   |
| `story`        | words for messages and writes                                             |
"""
