"""The files `hwsearch init` copies: a study and the network it names."""
