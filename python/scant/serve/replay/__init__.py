"""Open-loop load from request traces: schedule, prompts, client, figures, report."""
