"""The stateless routing tier.

`routing` is the sans-I/O core: `topology` knows who leads which partition, `flight` what is under way,
`scatter` what a request that spreads over partitions waits for, `admin` the operators' commands, `groups`
what stores say of their replicas. `service` and `backends` give it sockets.
"""
