"""Every form of one adapter beside the others: size, speed, memory, loss."""
