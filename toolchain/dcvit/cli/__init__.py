"""The command line: one thin file a command, which imports the library only when it runs."""
