"""The viewer: what is in a run directory, to be looked at; it reads artifacts and writes nothing."""
