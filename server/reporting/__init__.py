"""What is measured and how it is told: percentiles per adapter and arm, memory, Prometheus."""
