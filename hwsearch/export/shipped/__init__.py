"""Programs that are copied into bundles; they run without hwsearch."""
