"""The command line: one file a command. Data goes to standard output, everything else to standard error."""
