"""Where a task's examples come from: its files, its program, its rules, a teacher; and wording for programs."""
