"""What a process tells of itself: traces, logs, slow queries; and what of that can be changed while it runs."""
