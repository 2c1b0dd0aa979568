"""The song service's migrations (a package of the same name as the tool that runs them)."""
