"""Sessions and data in, records out: latency, memory, energy, accuracy and certificates, each with its conditions."""
