"""The critics: a head on the policy's trunk, a branch of its last layers, or a value model of its own."""
