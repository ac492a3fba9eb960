"""One file for each family of commands; `cli` imports a file only when one of its commands is called."""
