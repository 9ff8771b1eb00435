"""The chosen ladder on disk: models, I/O contract, certificates, test vectors, hashes. A device only reads it."""
