"""First stages by other people's libraries: each names candidates by a prefix, and the stored vectors decide."""
