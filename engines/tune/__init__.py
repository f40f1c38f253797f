"""Choose engine, precision and threads for this machine by measurement, see `engines.tune.tune`."""
