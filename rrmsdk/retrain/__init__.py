"""What a job that is left alone stands on: its lock, its journal, what its stages made, and what may go."""
