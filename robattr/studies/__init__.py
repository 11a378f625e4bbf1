"""Studies: a configuration becomes a run, a run a record, and records a verdict. Imports the core, never the pages."""
