"""Results as plain data: what was asked, what was measured, on which machine. No behaviour, no vendor type.

Everything here can be written to JSON and read back (`codec`), and lives in a run's SQLite file (`store`).
"""
