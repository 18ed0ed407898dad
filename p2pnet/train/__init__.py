"""Learn: tasks, data, the learner that owns the parameters. Knows no network."""
