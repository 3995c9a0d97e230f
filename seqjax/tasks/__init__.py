"""What is learned: one module a family of tasks, each a function that returns a `seqjax.task.Task`."""
